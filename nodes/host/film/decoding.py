"""Latents of a film to frames: window by window, seams cut, in constant memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ....skyreels_model.framing import FramedFilm
from ....skyreels_model.grid import CHANNELS, frame_length
from ....skyreels_model.rollout.film import Film
from ....skyreels_model.vae.tiles import Tiling
from ..sockets.latent import (
    FILM_KEY,
    FilmParts,
    Seam,
    Span,
    check_latent,
    film_parts,
    spans_of_window,
)
from ..sockets.vae import HostVAE
from ..sockets.vae_streams import decode_latents, tiling_of
from .given import FilmImages


def film_latent(
    film: Film, process_out: Callable[[Tensor], Tensor], images: FilmImages | None
) -> dict[str, Any]:
    """The windows of a film as one LATENT; `process_out` undoes the latents' normalisation.

    `samples` is the film without its overlaps, so that any VAE node can decode it whole; the
    latents given to each window ride along, so that `decode_film` can decode each window exactly
    as it was made. So do the films (T, H, W, 3) that it goes on from and leads up to.
    """
    plan, parts, start = film.plan, [], 0
    seams: list[Seam] = []
    spans: list[Span] = []
    source = images.video if images else None
    made = list(zip(plan.windows(), film.finished, strict=True))
    for window, latents in reversed(made) if plan.backwards else made:
        raw = process_out(latents)
        first, stop = plan.new_frames(window)
        repeated = window.repeated
        if source is not None and window.index == 0:
            repeated, first = window.prefix, frame_length(window.prefix)
        given, own = raw.tensor_split([repeated], dim=2)
        shown = max(stop - first, 0)
        spans += spans_of_window(film, window, start, own.shape[2], first, spans)
        parts.append(own)
        if plan.history == "latents" and window.repeated:
            # Latents that were carried over are one stream with those before.
            seams[-1] = replace(seams[-1], frames=seams[-1].frames + shown)
        else:
            seams.append(Seam(start, given.clone() if repeated else None, shown, window.skip))
        start += own.shape[2]
    samples = torch.cat(parts, dim=2)
    following = images.following if images else None
    made_so = FilmParts(tuple(samples.shape), seams, spans, source, following)
    return {"samples": samples, FILM_KEY: made_so}


def decode_film(vae: comfy.sd.VAE, latent: dict[str, Any], tile_size: int = 0) -> Tensor:
    """All frames of a LATENT, (batch * frames, H, W, 3) in 0..1; tile_size px, 0 by itself."""
    tiling = tiling_of(tile_size)
    samples = check_latent(latent)
    if getattr(vae, "latent_channels", CHANNELS) != CHANNELS:
        raise ValueError(
            f"vae has {vae.latent_channels} latent channels and the latents {CHANNELS}: use the "
            f"Wan 2.1 VAE"
        )
    film = film_parts(latent, samples)
    given = [one for one in (film.before, film.behind) if one is not None]
    bar = comfy.utils.ProgressBar(samples.shape[0] * samples.shape[2])
    made = samples.shape[0] * sum(seam.frames for seam in film.seams)
    total = made + sum(map(len, given))
    frames, position = None, 0
    for sample in samples.split(1):
        for piece in itertools.chain(
            _pieces(film.before),
            decode_seams(vae, sample, film.seams, bar, tiling),
            _pieces(film.behind),
        ):
            if frames is None:
                # A film to go on from may have come in half precision; the new frames do not.
                frames = piece.new_empty((total, *piece.shape[1:]), dtype=torch.float32)
            frames[position : position + len(piece)] = piece
            position += len(piece)
    assert frames is not None and position == len(frames)
    return frames


def _pieces(film: FramedFilm | Tensor | None) -> Iterator[Tensor]:
    """A given film, a few frames (n, H, W, 3) at a time: the only whole copy is the result."""
    if isinstance(film, FramedFilm):
        yield from film.pieces()
    elif film is not None:
        yield film


def decode_seams(
    vae: comfy.sd.VAE,
    sample: Tensor,
    seams: list[Seam],
    bar: comfy.utils.ProgressBar,
    tiling: Tiling | None = None,
) -> Iterator[Tensor]:
    """Frames of each seam in turn; the latents given to it are decoded, but not shown."""
    ends = [seam.start for seam in seams[1:]] + [sample.shape[2]]
    for seam, end in zip(seams, ends, strict=True):
        own = sample[:, :, seam.start : end]
        given = 0 if seam.given is None else seam.given.shape[2]
        window = own if seam.given is None else torch.cat([seam.given.to(own), own], dim=2)
        skip, left = seam.skip, seam.frames
        for piece in decode_pieces(vae, window, given, tiling):
            shown = piece[skip : skip + left]
            skip -= min(skip, len(piece))
            left -= len(shown)
            bar.update(max(1, len(piece) // 4))
            yield shown


def decode_pieces(
    vae: comfy.sd.VAE, latents: Tensor, given: int, tiling: Tiling | None = None
) -> Iterator[Tensor]:
    """Frames (n, H, W, 3) in 0..1 of a window (1, C, F, h, w), without those of `given` latents.

    With our VAE as a stream in constant memory; with any other in one piece. In tiles where asked
    to, with ours also where the device has no room for more.
    """
    if isinstance(vae, HostVAE):
        yield from decode_latents(vae, latents, given, tiling)
        return
    if tiling is None:
        frames = vae.decode(latents)
    else:
        sides = {"tile_x": tiling.columns.size, "tile_y": tiling.rows.size}
        frames = vae.decode_tiled(latents, **sides, overlap=tiling.rows.overlap)
    yield frames.reshape(-1, *frames.shape[-3:])[frame_length(given) if given else 0 :]
