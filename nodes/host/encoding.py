"""Frames to latents: as a stream through our VAE, in one piece through any other."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...skyreels_model.plan import SIZE_MULTIPLE
from ...skyreels_model.rollout import CHANNELS
from ...skyreels_model.shots import TEMPORAL_STRIDE, frame_length, latent_length
from .decoding import FILM_KEY, FilmParts, Seam, Span
from .vae import HostVAE

TILE = 256  # px
LOG = logging.getLogger("skyreels_v2")


def encode_frames(vae: comfy.sd.VAE, frames: Tensor) -> Tensor:
    """4k + 1 frames (T, H, W, 3) in 0..1 -> raw latents (1, 16, F, H / 8, W / 8), float32.

    With our VAE four frames at a time in constant memory, in tiles where even that is too much;
    with any other in one piece.
    """
    if not isinstance(vae, HostVAE):
        return vae.encode(frames).float()
    try:
        return _streamed(vae, frames)
    except comfy.model_management.OOM_EXCEPTION:
        LOG.warning("Out of memory while encoding: encoding again in tiles.")
    # Outside of the except block, which would keep the failed stream's tensors alive.
    comfy.model_management.soft_empty_cache()
    tiles = {"tile_x": TILE, "tile_y": TILE, "overlap": TILE // 4}
    return vae.encode_tiled(frames, **tiles).float()


def _streamed(vae: HostVAE, frames: Tensor) -> Tensor:
    shape = (1, 3, TEMPORAL_STRIDE, *frames.shape[1:3])
    memory = vae.memory_used_encode(shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
    stream = vae.first_stage_model.encode_stream()
    bar = comfy.utils.ProgressBar(latent_length(len(frames)))
    latents = []
    for piece in [frames[:1], *frames[1:].split(TEMPORAL_STRIDE)]:
        if not len(piece):
            continue
        comfy.model_management.throw_exception_if_processing_interrupted()
        x = vae.process_input(piece.movedim(-1, 0)[None])  # (1, 3, n, H, W)
        latents.append(stream.push(x.to(vae.device, vae.vae_dtype)).to("cpu", torch.float32))
        bar.update(1)
    return torch.cat(latents, dim=2)


def encode_film(vae: comfy.sd.VAE, pixels: Tensor) -> dict[str, Any]:
    """Any number of frames (T, H, W, C) in 0..1 as a LATENT that decodes to as many.

    The last latent is filled up with the last frame. Raises ValueError for another model's VAE, and
    for sizes that the model cannot take.
    """
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
    frames = pixels[..., :3]
    lacking = frame_length(latent_length(count)) - count
    if lacking:
        frames = torch.cat([frames, frames[-1:].repeat(lacking, 1, 1, 1)])
    samples = encode_frames(vae, frames)
    span = Span(0, samples.shape[2], 0, 0)
    parts = FilmParts(tuple(samples.shape), [Seam(0, None, count)], [span])
    return {"samples": samples, FILM_KEY: parts}
