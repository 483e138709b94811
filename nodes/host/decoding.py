"""Latents of a film to frames: window by window, seams cut, in constant memory."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...skyreels_model.rollout import CHANNELS, Film
from ...skyreels_model.shots import TEMPORAL_STRIDE, frame_length
from .vae import HostVAE

SEAMS_KEY = "skyreels_v2_seams"
SOURCE_KEY = "skyreels_v2_source"
TILE = 32  # latents
LOG = logging.getLogger("skyreels_v2")


@dataclass(frozen=True)
class Seam:
    """Where latents begin that are decoded by themselves, the latents given to them, their frames.

    frames: how many of its own frames belong to the film; the last latent may make up to 3 more.
    """

    start: int
    given: Tensor | None
    frames: int


def film_latent(
    film: Film, process_out: Callable[[Tensor], Tensor], source: Tensor | None = None
) -> dict[str, Any]:
    """The windows of a film as one LATENT; `process_out` undoes the latents' normalisation.

    `samples` is the film without its overlaps, so that any VAE node can decode it whole; the
    latents given to each window ride along, so that `decode_film` can decode each window exactly
    as it was made. So does `source` (T, H, W, 3), the film that it goes on from.
    """
    plan, parts, seams = film.plan, [], []
    start, left = 0, 0
    layout = plan.parts
    for window, latents in zip(plan.windows(), film.finished, strict=True):
        raw = process_out(latents)
        repeated = window.repeated
        if not repeated:
            left = layout[window.shot].sequence_frames
        if source is not None and window.index == 0:
            repeated, left = window.prefix, left - frame_length(window.prefix)
        given, own = raw.tensor_split([repeated], dim=2)
        made = own.shape[2] * TEMPORAL_STRIDE if repeated else frame_length(own.shape[2])
        shown = min(made, left)
        left -= shown
        parts.append(own)
        if plan.history == "latents" and window.repeated:
            # Latents that were carried over are one stream with those before.
            seams[-1] = replace(seams[-1], frames=seams[-1].frames + shown)
        else:
            seams.append(Seam(start, given.clone() if repeated else None, shown))
        start += own.shape[2]
    return {"samples": torch.cat(parts, dim=2), SEAMS_KEY: seams, SOURCE_KEY: source}


def check_latent(latent: dict[str, Any]) -> Tensor:
    """The samples of a video LATENT, or a ValueError that says what was given instead."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != CHANNELS:
        kind = "an image" if samples.ndim == 4 else "another video"
        raise ValueError(
            f"samples has shape {tuple(samples.shape)}, the latents of {kind} model; needed is "
            f"(batch, {CHANNELS}, frames, height / 8, width / 8) of a SkyReels-V2 or Wan 2.1 model"
        )
    return samples


def decode_film(vae: comfy.sd.VAE, latent: dict[str, Any]) -> Tensor:
    """All frames of a LATENT, (batch * frames, H, W, 3) in 0..1."""
    samples = check_latent(latent)
    if getattr(vae, "latent_channels", CHANNELS) != CHANNELS:
        raise ValueError(
            f"vae has {vae.latent_channels} latent channels and the latents {CHANNELS}: use the "
            f"Wan 2.1 VAE"
        )
    seams, source = fitting_seams(latent, samples)
    before = [] if source is None else [source]
    bar = comfy.utils.ProgressBar(samples.shape[0] * samples.shape[2])
    total = samples.shape[0] * sum(seam.frames for seam in seams) + sum(map(len, before))
    frames, position = None, 0
    for sample in samples.split(1):
        for piece in itertools.chain(before, decode_seams(vae, sample, seams, bar)):
            if frames is None:
                frames = piece.new_empty((total, *piece.shape[1:]))
            frames[position : position + len(piece)] = piece
            position += len(piece)
    assert frames is not None and position == len(frames)
    return frames


def fitting_seams(latent: dict[str, Any], samples: Tensor) -> tuple[list[Seam], Tensor | None]:
    """The seams of these samples, and the film before them.

    One window, and nothing before it, where a node in between has changed the samples' shape.
    """
    seams: list[Seam] | None = latent.get(SEAMS_KEY)
    whole = [Seam(0, None, frame_length(samples.shape[2]))]
    if not seams or samples.shape[0] != 1:
        return whole, None
    last = seams[-1]
    own = max(samples.shape[2] - last.start, 0)
    made = own * TEMPORAL_STRIDE if last.given is not None else frame_length(own)
    if 0 <= made - last.frames < TEMPORAL_STRIDE and all(
        seam.given is None or seam.given.shape[3:] == samples.shape[3:] for seam in seams
    ):
        return seams, latent.get(SOURCE_KEY)
    LOG.warning("The latents were resized or cut after sampling; decoding them as one window.")
    return whole, None


def decode_seams(
    vae: comfy.sd.VAE, sample: Tensor, seams: list[Seam], bar: comfy.utils.ProgressBar
) -> Iterator[Tensor]:
    """Frames of each seam in turn; the latents given to it are decoded, but not shown."""
    ends = [seam.start for seam in seams[1:]] + [sample.shape[2]]
    for seam, end in zip(seams, ends, strict=True):
        own = sample[:, :, seam.start : end]
        given = 0 if seam.given is None else seam.given.shape[2]
        window = own if seam.given is None else torch.cat([seam.given.to(own), own], dim=2)
        left = seam.frames
        for piece in decode_pieces(vae, window, given):
            yield piece[:left]
            left -= min(left, len(piece))
            bar.update(max(1, len(piece) // 4))


def decode_pieces(vae: comfy.sd.VAE, latents: Tensor, given: int) -> Iterator[Tensor]:
    """Frames (n, H, W, 3) in 0..1 of a window (1, C, F, h, w), without those of `given` latents.

    With our VAE latent by latent in constant memory, in tiles where even that is too much; with
    any other in one piece.
    """
    if not isinstance(vae, HostVAE):
        frames = vae.decode(latents)
        yield frames.reshape(-1, *frames.shape[-3:])[frame_length(given) if given else 0 :]
        return
    shown = 0
    try:
        for piece in _streamed(vae, latents, given):
            yield piece
            shown += len(piece)
        return
    except comfy.model_management.OOM_EXCEPTION:
        LOG.warning("Out of memory while decoding: decoding this window again in tiles.")
    # Outside of the except block, which would keep the failed stream's tensors alive.
    comfy.model_management.soft_empty_cache()
    frames = vae.decode_tiled(latents, tile_x=TILE, tile_y=TILE, overlap=TILE // 4)
    yield frames[0, (frame_length(given) if given else 0) + shown :]


def _streamed(vae: HostVAE, latents: Tensor, given: int) -> Iterator[Tensor]:
    memory = vae.memory_used_decode(latents.shape, vae.vae_dtype)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=memory)
    stream = vae.first_stage_model.decode_stream()
    for index, one in enumerate(latents.split(1, dim=2)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        pixels = stream.push(one.to(vae.device, vae.vae_dtype))
        if index >= given:
            out = vae.process_output(pixels.to(vae.output_device, torch.float32, copy=True))
            yield out[0].movedim(0, -1)
