"""Frames to latents: as a stream through our VAE, in one piece through any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ....skyreels_model.grid import SIZE_MULTIPLE, SPATIAL_STRIDE, frame_length, latent_length
from ....skyreels_model.rollout.parts import one_window
from ....skyreels_model.vae.tiles import Tiling
from ..sockets import vae_streams
from ..sockets.latent import make_latent
from ..sockets.memory import explain_lack
from ..sockets.vae import OTHER_VAE, HostVAE, check_wan_vae
from ..sockets.vae_streams import make_tiling
from .images import open_images


def encode_frames(
    vae: comfy.sd.VAE,
    frames: Tensor,
    tiling: Tiling | None = None,
    on_latents: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """Frames (T, H, W, 3) in 0..1 -> raw latents (1, 16, F, H / 8, W / 8), float32.

    The last latent is filled up with the last frame. With our VAE as a stream in constant memory;
    with any other in one piece. In tiles where asked to, with ours also where the device has no
    room for more. `on_latents` is called with how many more are done: who has a progress bar
    passes it in, for a second bar would take the first one's place.
    """
    count = latent_length(len(frames))
    if not isinstance(vae, HostVAE):
        latents = _encode_whole(vae, frames, tiling).float()
        on_latents(count)
        return latents
    whole, position = None, 0
    for piece in vae_streams.encode_frames(vae, frames, tiling):
        if whole is None:
            whole = piece.new_empty((*piece.shape[:2], count, *piece.shape[3:]))
        whole[:, :, position : position + piece.shape[2]] = piece
        position += piece.shape[2]
        on_latents(piece.shape[2])
    assert whole is not None and position == count
    return whole


def _encode_whole(vae: comfy.sd.VAE, frames: Tensor, tiling: Tiling | None) -> Tensor:
    frames = frames.clamp(0, 1)
    missing = frame_length(latent_length(len(frames))) - len(frames)
    if missing:
        frames = torch.cat([frames, frames[-1:].repeat(missing, 1, 1, 1)])
    with explain_lack("VAE encode", OTHER_VAE):
        if tiling is None:
            return vae.encode(frames)
        overlap = tiling.rows.overlap * SPATIAL_STRIDE
        columns, rows = (side.size * SPATIAL_STRIDE for side in (tiling.columns, tiling.rows))
        return vae.encode_tiled(frames, tile_x=columns, tile_y=rows, overlap=overlap)


def encode_film(vae: comfy.sd.VAE, pixels: Tensor, tile_size: int = 0) -> dict[str, Any]:
    """Any number of frames (T, H, W, C) in 0..1 as a LATENT that decodes to as many.

    tile_size in px, 0 for automatic. Raises ValueError for another model's VAE, and for frames
    that the model cannot take.
    """
    tiling = make_tiling(tile_size)
    check_wan_vae(vae)
    check_size(pixels)
    pixels = open_images("pixels", pixels)
    bar = comfy.utils.ProgressBar(latent_length(len(pixels)))
    samples = encode_frames(vae, pixels, tiling, bar.update)
    return make_latent(samples, one_window(samples, len(pixels)))


def check_size(pixels: Tensor) -> None:
    """Raise ValueError for frames (T, H, W, C) of a size that the model cannot take."""
    for side, size in (("height", pixels.shape[1]), ("width", pixels.shape[2])):
        if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
            nearest = max(round(size / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE
            raise ValueError(
                f"pixels have {side} {size}; it must be a multiple of {SIZE_MULTIPLE}; nearest: "
                f"{nearest} (crop or scale them before)"
            )
