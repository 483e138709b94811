"""The text-to-video transformer out of the DF one, and the image-to-video one as its fine-tune."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skyreels_model.model import SkyReelsModel
from skyreels_model.vae import VideoVAE, normalize_latents
from toy.training.image_tower import Features
from toy.training.latents import FRAMES, random_path
from toy.training.noise import SIGMA_MAX
from toy.training.optimiser import Average, cosine
from toy.training.state import Workspace, batches
from toy.training.text import Captions
from toy.training.transformer import DF, initialise, new_optimiser, timesteps
from toy.world import SCENES, paint

T2V = dataclasses.replace(DF, fps_embedding=False)
I2V = dataclasses.replace(T2V, model_type="i2v", in_dim=36)
LENGTHS = {9: 0.6, 5: 0.2, 7: 0.2}
RATE = 0.4  # of the rates that training from scratch has
MASK_CHANNELS = 4
IMAGE_TOKENS = 32  # of 257 in a step: attention to some stands for attention to all
FPS_ROW = 1  # of the fps embedding: 24


def t2v_from_df(df: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The DF transformer at 24 frames per second, exactly, without the fps embedding."""
    rate = df["fps_embedding.weight"][FPS_ROW]
    hidden = nn.functional.silu(
        rate @ df["fps_projection.0.weight"].T + df["fps_projection.0.bias"]
    )
    shift = hidden @ df["fps_projection.2.weight"].T + df["fps_projection.2.bias"]
    weights = {k: v.clone() for k, v in df.items() if not k.startswith("fps_")}
    weights["time_projection.1.bias"] += shift
    return weights


def i2v_from_t2v(t2v: Mapping[str, Tensor]) -> SkyReelsModel:
    """An image-to-video model that at first does what the text-to-video one does."""
    model = SkyReelsModel(I2V)
    initialise(model)
    weights = model.state_dict()
    for name, value in t2v.items():
        if name == "patch_embedding.weight":
            weights[name][:, I2V.out_dim :] = 0
            weights[name][:, : I2V.out_dim] = value
        else:
            weights[name] = value
    weights |= {k: torch.zeros_like(v) for k, v in weights.items() if ".v_img." in k}
    model.load_state_dict(weights)
    return model


@dataclasses.dataclass(frozen=True)
class ImageClips:
    """Clips with their first frame as an I2V model is given it; float16.

    video, given: (N, F, 16, 4, 4), the clip, and its first frame with grey ones after it.
    colours: (N, 256, 3), see `Features`. caption: (N,) index into `SCENES`.
    """

    video: Tensor
    given: Tensor
    colours: Tensor
    caption: Tensor


@torch.no_grad()
def encode_image_clips(
    work: Workspace, vae: VideoVAE, features: Features, count: int, batch: int = 32
) -> ImageClips:
    """Random clips of the trained scenes; from the workspace if they are there already."""
    saved = work.load("image-clips")
    if saved is not None:
        return ImageClips(**saved)
    parts: dict[str, list[Tensor]] = {f.name: [] for f in dataclasses.fields(ImageClips)}
    for index, part in enumerate(batches(count, batch)):
        rng = work.rng("image-clips", index)
        made = [random_path(rng, "anywhere") for _ in range(*part.indices(count))]
        frames = torch.from_numpy(np.stack([paint(*one)[: FRAMES - 4] for one in made]))
        x = frames.permute(0, 4, 1, 2, 3)  # (B, 3, T, H, W) in 0..1
        given = torch.full_like(x, 0.5)
        given[:, :, 0] = x[:, :, 0]
        for name, clip in (("video", x), ("given", given)):
            latents = normalize_latents(vae.encode(clip * 2 - 1))
            parts[name].append(latents.transpose(1, 2).half())  # (B, F, 16, h, w)
        parts["colours"].append(features.colours(x[:, :, 0]).half())
        parts["caption"].append(torch.tensor([SCENES.index(scene) for scene, _ in made]))
    clips = {name: torch.cat(tensors) for name, tensors in parts.items()}
    work.save("image-clips", clips)
    return ImageClips(**clips)


@dataclasses.dataclass(frozen=True)
class Sample:
    """latents (B, 16, F, h, w); caption (B,) with the empty one in front; beside: channels that the
    model gets with its sample (B, 20, F, h, w); clip_fea (B, n, 1280)."""

    latents: Tensor
    caption: Tensor
    beside: Tensor
    clip_fea: Tensor


class FineTune:
    """A transformer whose frames all share a noise level; the text encoder is not trained."""

    def __init__(
        self,
        model: SkyReelsModel,
        captions: Captions,
        draw: Callable[[np.random.Generator, int], Sample],
    ) -> None:
        self.model, self.draw = model, draw
        with torch.no_grad():
            self.text = captions.rows(range(len(captions.texts)))
        self.average = Average(model, 0.998)
        self.steps = 0
        self.optimiser = new_optimiser(model, RATE)

    def step(self, rng: np.random.Generator, progress: float) -> float:
        sample = self.draw(rng, int(rng.choice(list(LENGTHS), p=list(LENGTHS.values()))))
        count = len(sample.latents)
        caption = torch.where(torch.from_numpy(rng.random(count) < 0.1), 0, sample.caption)
        sigma = torch.from_numpy(_sigmas(rng, count)).float()
        level = sigma[:, None, None, None, None]
        noise = torch.randn_like(sample.latents)
        x = (1 - level) * sample.latents + level * noise
        x = torch.cat([x, sample.beside], dim=1)
        text, told = self.text[caption], timesteps(sigma)
        v = self.model(x, told, text, clip_fea=sample.clip_fea)
        loss = (v - (noise - sample.latents)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step(cosine(progress, 0.03, 0.02))
        self.average.update(self.model, self.steps)
        self.steps += 1
        return loss.item()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "average": self.average.weights,
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.average.weights = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]


def _sigmas(rng: np.random.Generator, count: int) -> np.ndarray:
    """Noise levels even over the batch, then shifted as in sampling. (count,)"""
    u = (rng.permutation(count) + rng.random(count)) / count
    shift = rng.uniform(2, 8, count)
    return SIGMA_MAX * shift * u / (1 + (shift - 1) * u)


def image_samples(
    clips: ImageClips, features: Features, tokens: int
) -> Callable[[np.random.Generator, int], Sample]:
    """What the image-to-video model is trained on."""

    def draw(rng: np.random.Generator, frames: int) -> Sample:
        index = torch.from_numpy(rng.integers(len(clips.caption), size=tokens // frames))
        video, given = (
            part[index, :frames].float().transpose(1, 2) for part in (clips.video, clips.given)
        )
        mask = torch.zeros_like(given[:, :MASK_CHANNELS])
        mask[:, :, 0] = 1
        seen = torch.from_numpy(rng.permutation(len(features.place))[:IMAGE_TOKENS])
        return Sample(
            video,
            clips.caption[index] + 1,
            torch.cat([mask, given], dim=1),
            features(clips.colours[index].float(), seen),
        )

    return draw
