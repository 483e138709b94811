"""Finished latents to frames, with plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..vae.network import VideoVAE, denormalize_latents
from .film import Film
from .parts import decode_stretches, film_stretches


def decode_latents(vae: VideoVAE, latents: Tensor) -> Iterator[Tensor]:
    """Decode latents (1, C, F, h, w), normalised, one by one.

    Yields pieces (1, 3, n, H, W), clamped to [-1, 1].
    """
    stream = vae.decode_stream()
    for latent in denormalize_latents(latents).split(1, dim=2):
        yield stream.push(latent).clamp(-1, 1)


def film_frames(film: Film, vae: VideoVAE) -> Iterator[Tensor]:
    """All frames of the film in order, (1, 3, n, H, W) in [-1, 1], piece by piece."""

    def decode(latents: Tensor) -> Iterator[Tensor]:
        return decode_latents(vae, latents)

    return decode_stretches(film_stretches(film.plan, film.finished), decode)
