"""Training the causal VAE: single images first, then clips; its latents to published statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skyreels_model.vae import (
    LATENT_MEAN,
    LATENT_STD,
    VideoVAE,
    denormalize_latents,
    normalize_latents,
)
from toy.training.optimiser import Average, Optimiser, cosine
from toy.training.scenes import Painter, as_named, random_scene
from toy.training.state import batches
from toy.world import BAR, FPS, SIZE, path

WIDTH = 8
LATENT_NOISE = 0.2
FOREGROUND = 5.0  # weight of the shape's pixels, which are a ninth of all
FRAME_RATES = (FPS, FPS, 16)


def clips(
    rng: np.random.Generator, count: int, frames: int, painter: Painter = as_named
) -> tuple[Tensor, Tensor]:
    """Random clips of trained scenes (B, 3, T, H, W) in -1..1, and the weights of their pixels."""
    made, weights = [], []
    for _ in range(count):
        scene = random_scene(rng)
        start = tuple(rng.uniform(0, SIZE, 2))
        centres = path([scene.direction] * (frames - 1), start, rng.choice(FRAME_RATES))
        made.append(painter(rng, scene, centres))
        offset = np.abs((np.arange(SIZE) + 0.5 - centres[:, :, None] + SIZE / 2) % SIZE - SIZE / 2)
        near = (offset < max(BAR) + 2).astype(np.float32)  # (T, 2, size)
        weights.append(1 + (FOREGROUND - 1) * near[:, 1, :, None] * near[:, 0, None, :])
    x = torch.from_numpy(np.stack(made)).permute(0, 4, 1, 2, 3)  # (B, 3, T, H, W)
    return x * 2 - 1, torch.from_numpy(np.stack(weights))[:, None]


def new_vae() -> VideoVAE:
    """Random weights with which time does nothing yet: it averages on the way in, repeats back."""
    vae = VideoVAE(dim=WIDTH)
    for name, module in vae.named_modules():
        if not name.endswith("time_conv"):
            continue
        rows, columns = module.weight.shape[:2]
        identity = torch.eye(columns).repeat(rows // columns, 1)
        taps = (0.0, 0.5, 0.5) if name.startswith("encoder") else (0.0, 0.0, 1.0)
        with torch.no_grad():
            module.weight.copy_(torch.stack([tap * identity for tap in taps], -1)[..., None, None])
            module.bias.zero_()
    return vae


@torch.no_grad()
def inflate(vae: VideoVAE) -> None:
    """Make the taps that images never trained small, so that clips begin as images ended."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d) and tuple(module.weight.shape[2:]) == (3, 3, 3):
            module.weight[:, :, :2] *= 0.1


def normalised(mu: Tensor) -> Tensor:
    """Each channel to mean 0 and variance 1 over the batch: (B, C, F, h, w)."""
    return nn.functional.batch_norm(mu, None, None, training=True)


class VAETrainee:
    """The VAE on clips of one of `lengths` frames, drawn by step, `frames_a_step` of them in all.

    `decoder_only`: the encoder, and with it all latents, stays as it is; the VAE must have the
    published statistics by then.
    """

    def __init__(
        self,
        vae: VideoVAE,
        lengths: tuple[int, ...],
        frames_a_step: int,
        lr: float,
        decoder_only: bool = False,
        painter: Painter = as_named,
    ) -> None:
        self.vae, self.lengths, self.frames_a_step = vae, lengths, frames_a_step
        self.decoder_only, self.painter = decoder_only, painter
        for part in (vae.encoder, vae.conv1):
            part.requires_grad_(not decoder_only)
        self.average = Average(vae, 0.995)
        self.steps = 0
        parameters = [(name, p) for name, p in vae.named_parameters() if p.requires_grad]
        self.optimiser = Optimiser(parameters, _is_conv, lr, lr * 0.12)

    def step(self, rng: np.random.Generator, progress: float) -> float:
        frames = int(rng.choice(self.lengths))
        x, weight = clips(rng, max(2, self.frames_a_step // frames), frames, self.painter)
        error = self.vae.decode(self._noised_latents(x)) - x
        loss = (weight * (error.abs() + 2 * error.square())).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimiser.step(cosine(progress, 0.05, 0.1))
        self.average.update(self.vae, self.steps)
        self.steps += 1
        return loss.item()

    def _noised_latents(self, x: Tensor) -> Tensor:
        """What the decoder has to make the clips (B, 3, T, H, W) of."""
        if not self.decoder_only:
            z = normalised(self.vae.encode(x))
            return z + LATENT_NOISE * torch.randn_like(z)
        with torch.no_grad():
            z = normalize_latents(self.vae.encode(x))
        return denormalize_latents(z + LATENT_NOISE * torch.randn_like(z))

    def state_dict(self) -> dict[str, Any]:
        return {
            "vae": self.vae.state_dict(),
            "average": self.average.weights,
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vae.load_state_dict(state["vae"])
        self.average.weights = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]


def _is_conv(name: str, p: nn.Parameter) -> bool:
    """All convolutions but the two that touch pixels."""
    return p.ndim >= 4 and "coder.conv1" not in name and "decoder.head" not in name


@torch.no_grad()
def fold_statistics(
    vae: VideoVAE, rng: np.random.Generator, count: int, painter: Painter = as_named
) -> None:
    """Give the latents the published mean and std, measured over `count` clips.

    The VAE was trained with latents normalised between encoder and decoder. Here the encoder's
    last layer takes over that, and the published statistics on top; the decoder's first layer
    takes the latter off again. The function of the whole stays what it was.
    """
    moments = torch.cat([vae.encode(clips(rng, 16, 17, painter)[0]) for _ in batches(count, 16)])
    mean = moments.mean(dim=(0, 2, 3, 4)).double()
    std = moments.var(dim=(0, 2, 3, 4), unbiased=False).add(1e-5).sqrt().double()
    published_mean, published_std = torch.tensor((LATENT_MEAN, LATENT_STD)).double()
    rows, into, out = vae.z_dim, vae.conv1, vae.conv2
    scale = published_std / std
    into.weight[:rows] *= scale[:, None, None, None, None].float()
    into.bias[:rows] = (scale * (into.bias[:rows].double() - mean) + published_mean).float()
    weight = out.weight[..., 0, 0, 0].double() / published_std
    out.weight.copy_(weight[..., None, None, None].float())
    out.bias.sub_((weight @ published_mean).float())
