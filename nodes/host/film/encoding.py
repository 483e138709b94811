"""Frames to latents: as a stream through our VAE, in one piece through any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ....skyreels_model.grid import CHANNELS, SIZE_MULTIPLE, frame_length, latent_length
from ....skyreels_model.vae.tiles import Tiling
from ..sockets import vae_streams
from ..sockets.latent import FILM_KEY, FilmParts, Seam, Span
from ..sockets.vae import HostVAE
from ..sockets.vae_streams import LATENT, tiling_of


def encode_frames(
    vae: comfy.sd.VAE,
    frames: Tensor,
    tiling: Tiling | None = None,
    on_latents: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Frames (T, H, W, 3) in 0..1 -> raw latents (1, 16, F, H / 8, W / 8), float32.

    The last latent is filled up with the last frame. With our VAE as a stream in constant memory;
    with any other in one piece. In tiles where asked to, with ours also where the device has no
    room for more. on_latents: told how many latents more are done.
    """
    count = latent_length(len(frames))
    if not isinstance(vae, HostVAE):
        return _encode_whole(vae, frames, tiling).float()
    latents, position = None, 0
    for piece in vae_streams.encode_frames(vae, frames, tiling):
        if latents is None:
            latents = piece.new_empty((*piece.shape[:2], count, *piece.shape[3:]))
        latents[:, :, position : position + piece.shape[2]] = piece
        position += piece.shape[2]
        on_latents(piece.shape[2])
    assert latents is not None and position == count
    return latents


def _encode_whole(vae: comfy.sd.VAE, frames: Tensor, tiling: Tiling | None) -> Tensor:
    lacking = frame_length(latent_length(len(frames))) - len(frames)
    if lacking:
        frames = torch.cat([frames, frames[-1:].repeat(lacking, 1, 1, 1)])
    if tiling is None:
        return vae.encode(frames)
    sides = {"tile_x": tiling.columns.size * LATENT, "tile_y": tiling.rows.size * LATENT}
    return vae.encode_tiled(frames, **sides, overlap=tiling.rows.overlap * LATENT)


def encode_film(vae: comfy.sd.VAE, pixels: Tensor, tile_size: int = 0) -> dict[str, Any]:
    """Any number of frames (T, H, W, C) in 0..1 as a LATENT that decodes to as many.

    tile_size in px, 0 by itself. Raises ValueError for another model's VAE, and for sizes that the
    model cannot take.
    """
    tiling = tiling_of(tile_size)
    if getattr(vae, "latent_channels", CHANNELS) != CHANNELS:
        raise ValueError(
            f"vae has {vae.latent_channels} latent channels; needed is the Wan 2.1 VAE with "
            f"{CHANNELS}"
        )
    count, height, width = pixels.shape[:3]
    for name, size in (("height", height), ("width", width)):
        if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
            nearest = max(round(size / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE
            raise ValueError(
                f"pixels have {name} {size}; it must be a multiple of {SIZE_MULTIPLE}; nearest: "
                f"{nearest} (crop or scale them before)"
            )
    bar = comfy.utils.ProgressBar(latent_length(count))
    samples = encode_frames(vae, pixels[..., :3], tiling, bar.update)
    span = Span(0, samples.shape[2], 0, 0)
    parts = FilmParts(tuple(samples.shape), [Seam(0, None, count)], [span])
    return {"samples": samples, FILM_KEY: parts}
