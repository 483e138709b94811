"""Films of the toy world, made by `skyreels_model` alone, and their scores over all captions.

python toy/films.py [--ar-step 5] [--windows 1] [--solver unipc] [--sheet SHEET.png]
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from skyreels_model import checkpoint  # noqa: E402
from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.history import new_history  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import (  # noqa: E402
    Film,
    SeededNoise,
    Velocity,
    film_frames,
    generate,
)
from skyreels_model.text_encoder import UMT5Config, UMT5Encoder  # noqa: E402
from skyreels_model.tokenizer import Tokenizer, clean_text  # noqa: E402
from skyreels_model.vae import VideoVAE  # noqa: E402
from toy import measure  # noqa: E402
from toy.world import SIZE, SPEED, captions  # noqa: E402

WEIGHTS = ROOT / "toy" / "weights"
TRANSFORMER = WEIGHTS / "diffusion_models" / "toy" / "SkyReels-V2-DF-Toy-32P" / "model.safetensors"
VAE = WEIGHTS / "vae" / "toy" / "Wan2.1_VAE.pth"
TEXT_ENCODER = WEIGHTS / "text_encoders" / "toy" / "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = TEXT_ENCODER.parent / "google" / "umt5-xxl"
GUIDANCE = 4.0
WINDOW, OVERLAP = 33, 17  # frames


@dataclass(frozen=True)
class ToySet:
    """The three networks of the toy set in float32 on the CPU, and their tokenizer."""

    transformer: SkyReelsModel
    vae: VideoVAE
    text_encoder: UMT5Encoder
    tokenizer: Tokenizer

    @classmethod
    def load(cls) -> ToySet:
        """From toy/weights. Raises what `checkpoint.read` raises where a file is absent."""
        weights = checkpoint.read(TRANSFORMER).tensors
        transformer = SkyReelsModel(ModelConfig.from_state_dict(weights), device="meta")
        checkpoint.load_weights(transformer, weights)
        weights = checkpoint.read(VAE).tensors
        vae = VideoVAE.from_state_dict(weights, device="meta")
        checkpoint.load_weights(vae, weights)
        weights = checkpoint.read(TEXT_ENCODER).tensors
        encoder = UMT5Encoder(UMT5Config.from_state_dict(weights), device="meta")
        checkpoint.load_weights(encoder, weights)
        return cls(transformer, vae, encoder, Tokenizer.from_folder(TOKENIZER))

    def encode(self, prompts: list[str]) -> Tensor:
        """Text rows (B, 512, 64), zero behind each text."""
        ids, mask = self.tokenizer.tokenize([clean_text(prompt) for prompt in prompts])
        return self.text_encoder(ids, mask)

    def velocity(self, prompt: str, fps: int = 24, guidance: float = GUIDANCE) -> Velocity:
        """The guided velocity of a prompt against the empty one, both in one batch."""
        context = self.encode([prompt, ""])
        rate = torch.tensor([fps, fps])

        def guided(x: Tensor, t: Tensor) -> Tensor:
            both = self.transformer(x.repeat(2, 1, 1, 1, 1), t.repeat(2, 1), context, fps=rate)
            cond, uncond = both.chunk(2)
            return uncond + guidance * (cond - uncond)

        return guided

    @torch.inference_mode()
    def film(self, prompt: str, plan: FilmPlan, seed: int, solver: str = "unipc") -> np.ndarray:
        """Frames (T, H, W, 3), float32 in 0..1, continued through pixels."""
        film = Film(plan, solver)
        history = new_history(plan, self.vae)
        velocity = self.velocity(prompt, plan.fps)
        for _ in generate(velocity, plan, SeededNoise(seed), history, film=film):
            pass
        frames = torch.cat(list(film_frames(film, self.vae)), dim=2)[0]  # (3, T, H, W)
        return ((frames + 1) / 2).permute(1, 2, 3, 0).numpy()


def toy_plan(windows: int = 1, ar_step: int = 5) -> FilmPlan:
    """Windows of 33 frames that overlap by 17, with the settings the toy set was trained for."""
    return FilmPlan(
        num_frames=WINDOW + (windows - 1) * (WINDOW - OVERLAP),
        width=SIZE,
        height=SIZE,
        window=WINDOW,
        overlap=OVERLAP,
        steps=20,
        shift=5.0,
        ar_step=ar_step,
        block_size=1,
        prefix_noise=20,
    )


def score_all(toy: ToySet, plan: FilmPlan, seed: int, solver: str) -> str:
    """Every caption once: the windows that fail, and the share of right looks over all of them."""
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
    results, lines = [], []
    for index, caption in enumerate(captions()):
        for score in measure.scores(toy.film(caption, plan, seed + index, solver), caption, spans):
            results.append(score)
            if not score.ok:
                lines.append(f"{caption!r}, frames {score.span}: {score.shown}")
    for name in ("background", "colour", "direction"):
        right = sum(getattr(r.shown, name) == getattr(r.asked, name) for r in results)
        lines.append(f"{name}: {right} of {len(results)} ({right / len(results):.3f})")
    speeds = [r.speed for r in results if r.ok]
    lines.append(f"speed: {np.mean(speeds):.2f} px a frame (asked: {SPEED})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ar-step", type=int, default=5, help="0 is synchronous")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--solver", default="unipc")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads cost time at this size
    plan = toy_plan(options.windows, options.ar_step)
    print(score_all(ToySet.load(), plan, options.seed, options.solver))


if __name__ == "__main__":
    main()
