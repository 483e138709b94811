"""Finished latents to frames, with plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..vae.network import VideoVAE, denormalize_latents
from .film import Film


def new_frames(vae: VideoVAE, latents: Tensor, repeated: int) -> Iterator[Tensor]:
    """Decode a window latent by latent, leaving out the frames of its first `repeated` latents.

    latents (1, C, F, h, w), normalised -> pieces (1, 3, n, H, W), clamped to [-1, 1].
    """
    stream = vae.decode_stream()
    for index, latent in enumerate(denormalize_latents(latents).split(1, dim=2)):
        frames = stream.push(latent)
        if index >= repeated:
            yield frames.clamp(-1, 1)


def film_frames(film: Film, vae: VideoVAE) -> Iterator[Tensor]:
    """All frames of the film in order, (1, 3, n, H, W) in [-1, 1], piece by piece."""
    plan, stream = film.plan, None
    windows = list(zip(plan.windows(), film.finished, strict=False))
    for window, latents in reversed(windows) if plan.backwards else windows:
        start, stop = plan.new_frames(window)
        skip, left = window.skip, stop - start
        if plan.history == "latents" and not plan.backwards:
            # One sequence from cut to cut: the VAE's stream goes on where it stood.
            stream = stream if window.repeated and stream else vae.decode_stream()
            own = denormalize_latents(latents[:, :, window.repeated :])
            pieces: Iterator[Tensor] = map(stream.push, own.split(1, dim=2))
        else:
            pieces = new_frames(vae, latents, window.repeated)
        for piece in pieces:
            shown = piece[:, :, skip : skip + left].clamp(-1, 1)
            skip -= min(skip, piece.shape[2])
            left -= shown.shape[2]
            yield shown
