"""A film in plain PyTorch, without ComfyUI: `python3 example.py` writes film.mp4.

It needs torch, safetensors, sentencepiece, ftfy, einops, numpy and av. The 15 MB of toy weights
know one coloured shape that moves over a background.
"""

from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, film_frames, generate
from skyreels_model.rollout.history import new_history
from skyreels_model.video.codecs import VideoSettings
from skyreels_model.video.writer import FilmWriter
from toy.toyset import ToySet

PROMPT = "a red circle moving right on a black background"


@torch.inference_mode()
def main(path: str = "film.mp4", prompt: str = PROMPT) -> None:
    toy = ToySet.load()  # transformer, text encoder, tokenizer and VAE
    text = toy.encode([prompt, ""])  # (2, 512, 64)
    plan = FilmPlan(num_frames=81, width=32, height=32, window=33, overlap=17, steps=15, shift=5.0)

    # x: noisy latents (1, 16, F, h, w); t: a timestep for each of them (1, F)
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        asked, free = toy.transformer(x.repeat(2, 1, 1, 1, 1), t.repeat(2, 1), text).chunk(2)
        return free + 2.0 * (asked - free)

    film = Film(plan)
    for _step in generate(velocity, plan, SeededNoise(1), new_history(plan, toy.vae), film=film):
        print(f"window {film.window} of {plan.num_windows}, step {film.row}")
    with FilmWriter(Path(path), VideoSettings(), Fraction(plan.fps)) as writer:
        for piece in film_frames(film, toy.vae):  # (1, 3, n, H, W) in -1..1
            writer.write((piece[0].movedim(0, -1) + 1) / 2)


if __name__ == "__main__":
    main()
