"""The toy set's networks, and films made with them by `skyreels_model` alone."""

from __future__ import annotations

import dataclasses
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skyreels_model.cache.kept_frames import FrameKeeper, KeptVelocity, keeping_of
from skyreels_model.config import ModelConfig
from skyreels_model.files import checkpoint, loading
from skyreels_model.image_encoder import CLIPVision, CLIPVisionConfig, preprocess
from skyreels_model.lora.match import PREFIX, match_lora
from skyreels_model.lora.parts import difference
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.identity import CAUSAL
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, Velocity, film_frames, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.history import new_history
from skyreels_model.text_encoder import UMT5Config, UMT5Encoder
from skyreels_model.text_encoder.tokenizer import Tokenizer, clean_text
from skyreels_model.vae import VideoVAE, normalize_latents
from toy.world import FPS, SIZE

WEIGHTS = pathlib.Path(__file__).resolve().parent / "weights"
TRANSFORMERS = WEIGHTS / "diffusion_models" / "toy"
VAE = WEIGHTS / "vae" / "toy" / "Wan2.1_VAE.pth"
TEXT_ENCODER = WEIGHTS / "text_encoders" / "toy" / "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = TEXT_ENCODER.parent / "google" / "umt5-xxl"
IMAGE_ENCODER = (
    WEIGHTS / "clip_vision" / "toy" / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
)
CAUSAL_LORA = WEIGHTS / "loras" / "toy" / "Self-Forcing-Toy-32P.safetensors"  # for T2V
RECOLOURED = "model.safetensors"  # the transformer of a set for any colours
GUIDANCE = 2.0
WINDOW, OVERLAP = 33, 17  # frames
GREY = 0.0  # of frames that are not known, in -1..1
MASK_CHANNELS = 4


def transformer_path(kind: str = "DF") -> pathlib.Path:
    """The file of the DF, T2V or I2V transformer."""
    return TRANSFORMERS / f"SkyReels-V2-{kind}-Toy-32P" / "model.safetensors"


@torch.no_grad()
def add_lora(transformer: SkyReelsModel, path: pathlib.Path) -> None:
    """Put a LoRA of factors into the weights."""
    weights = transformer.state_dict()
    shapes = {k.removesuffix(".weight"): tuple(v.shape) for k, v in weights.items()}
    lora = match_lora(checkpoint.read(path), shapes)
    layers = (name.removeprefix(PREFIX).rpartition(".lora_")[0] for name in lora.tensors)
    for layer in dict.fromkeys(layers):
        weights[f"{layer}.weight"] += difference(lora.parts(layer))


@dataclass(frozen=True)
class ToySet:
    """The networks of the toy set in float32 on the CPU, and their tokenizer."""

    transformer: SkyReelsModel
    vae: VideoVAE
    text_encoder: UMT5Encoder
    tokenizer: Tokenizer
    image_encoder: CLIPVision

    @classmethod
    def load(cls, kind: str = "DF", recoloured: pathlib.Path | None = None) -> ToySet:
        """From toy/weights; transformer and VAE from where `toy/recolour.py` wrote them, if given.

        kind: DF, T2V or I2V, or causal: T2V with the LoRA that makes it so. Raises what
        `checkpoint.read` raises where a file is absent.
        """
        published = "T2V" if kind == CAUSAL else kind
        path = recoloured / RECOLOURED if recoloured else transformer_path(published)
        weights = checkpoint.read(path).tensors
        transformer = SkyReelsModel(ModelConfig.from_state_dict(weights), device="meta")
        loading.load_weights(transformer, weights)
        if kind == CAUSAL:
            add_lora(transformer, CAUSAL_LORA)
        weights = checkpoint.read(recoloured / VAE.name if recoloured else VAE).tensors
        vae = VideoVAE.from_state_dict(weights, device="meta")
        loading.load_weights(vae, weights)
        weights = checkpoint.read(TEXT_ENCODER).tensors
        encoder = UMT5Encoder(UMT5Config.from_state_dict(weights), device="meta")
        loading.load_weights(encoder, weights)
        weights = checkpoint.read(IMAGE_ENCODER).tensors
        tower = CLIPVision(CLIPVisionConfig.from_state_dict(weights), device="meta")
        loading.load_weights(tower, weights)
        return cls(transformer, vae, encoder, Tokenizer.from_folder(TOKENIZER), tower)

    def encode(self, prompts: list[str]) -> Tensor:
        """Text rows (B, 512, 64), zero after each text."""
        ids, mask = self.tokenizer.tokenize([clean_text(prompt) for prompt in prompts])
        return self.text_encoder(ids, mask)

    @torch.inference_mode()
    def latents(self, frames: np.ndarray) -> Tensor:
        """Frames (T, H, W, 3) in 0..1, 4k + 1 of them -> normalised latents (1, 16, F, h, w)."""
        x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None]
        return normalize_latents(self.vae.encode(x * 2 - 1))

    @torch.inference_mode()
    def decoded(self, latents: Tensor) -> np.ndarray:
        """Raw latents -> frames (T, H, W, 3), float32 in 0..1."""
        return _frames(self.vae.decode(latents).clamp(-1, 1))

    def velocity(
        self,
        prompt: str,
        fps: int = FPS,
        guidance: float = GUIDANCE,
        beside: Tensor | None = None,
        clip_fea: Tensor | None = None,
    ) -> Velocity:
        """The guided velocity of a prompt against the empty one, both in one batch.

        beside (1, 20, F, h, w) and clip_fea (1, 257, 1280) are an I2V model's.
        """
        context = self.encode([prompt, ""])
        rate = torch.tensor([fps, fps])
        image = None if clip_fea is None else clip_fea.repeat(2, 1, 1)

        def guided(x: Tensor, t: Tensor) -> Tensor:
            if beside is not None:
                x = torch.cat([x, beside], dim=1)
            both = self.transformer(
                x.repeat(2, 1, 1, 1, 1), t.repeat(2, 1), context, clip_fea=image, fps=rate
            )
            cond, uncond = both.chunk(2)
            return uncond + guidance * (cond - uncond)

        return guided

    def blocks_velocity(self, film: Film, prompt: str, guidance: float = 1.0) -> Velocity:
        """The causal set's guided velocity: what blocks of `film` know of those done is kept."""
        keeping = keeping_of(film.plan, blocks=True)
        assert keeping is not None
        prompts = [prompt] if guidance == 1 else [prompt, ""]
        count, context = len(prompts), self.encode(prompts)

        def call(x: Tensor, timestep: Tensor, **how: Any) -> Tensor:
            return self.transformer(x, timestep, context, **how)

        def ask(keeper: FrameKeeper, x: Tensor, t: Tensor) -> Tensor:
            each = keeper.forward(prompts, call, x.repeat(count, 1, 1, 1, 1), t.repeat(count, 1))
            cond, uncond = each[:1], each[-1:]
            return uncond + guidance * (cond - uncond)

        return KeptVelocity(film, keeping, ask)

    def film(self, prompt: str, plan: FilmPlan, seed: int, *how: Any, **given: Any) -> np.ndarray:
        """The `frames` of what `make` makes."""
        return self.frames(self.make(prompt, plan, seed, *how, **given))

    @torch.inference_mode()
    def frames(self, film: Film) -> np.ndarray:
        """The frames of a finished film (T, H, W, 3), float32 in 0..1."""
        return _frames(torch.cat(list(film_frames(film, self.vae)), dim=2))

    @torch.inference_mode()
    def make(
        self,
        prompt: str,
        plan: FilmPlan,
        seed: int,
        solver: str = "unipc",
        conditions: Conditions | None = None,
        guidance: float = GUIDANCE,
        image: np.ndarray | None = None,
        blocks: bool = False,
    ) -> Film:
        """A finished film. `image` (H, W, 3) is an I2V model's start, blocks: of the causal set."""
        conditions = conditions or Conditions()
        plan = plan.fit(conditions.counts)
        given = {} if image is None else self._image_inputs(image, plan)
        film = Film(plan, solver, conditions=conditions)
        if blocks:
            velocity: Velocity = self.blocks_velocity(film, prompt, guidance)
        else:
            velocity = self.velocity(prompt, plan.fps, guidance, **given)
        history = new_history(plan, self.vae)
        for _ in generate(velocity, plan, SeededNoise(seed), history, film=film):
            pass
        return film

    def _image_inputs(self, image: np.ndarray, plan: FilmPlan) -> dict[str, Tensor]:
        """What an I2V model is given of its start image, as the reference prepares it."""
        picture = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
        length = 4 * (plan.latent_frames - 1) + 1
        frames = torch.full((1, 3, length, *picture.shape[1:]), GREY)
        frames[0, :, 0] = picture * 2 - 1
        known = normalize_latents(self.vae.encode(frames))
        mask = torch.zeros_like(known[:, :MASK_CHANNELS])
        mask[:, :, 0] = 1
        features = self.image_encoder(preprocess(picture[None]))
        return {"beside": torch.cat([mask, known], dim=1), "clip_fea": features}


def _frames(x: Tensor) -> np.ndarray:
    """(1, 3, T, H, W) in -1..1 -> (T, H, W, 3) in 0..1"""
    return ((x[0] + 1) / 2).permute(1, 2, 3, 0).numpy()


def toy_plan(
    windows: int = 1, ar_step: int = 5, fps: int = FPS, history: str = "pixels"
) -> FilmPlan:
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
        fps=fps,
        history=history,
    )


def blocks_plan(frames: int, steps: int = 4) -> FilmPlan:
    """A sliding film of the causal set: blocks of three latents, one after the other."""
    return dataclasses.replace(
        toy_plan(), num_frames=frames, overlap=9, steps=steps, ar_step=steps, block_size=3,
        prefix_noise=0, sliding=True,
    )  # fmt: skip
