"""Latents of a film to frames in the host: its LATENT, its VAEs, its progress bar.

How windows join is `rollout.parts`' part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ....skyreels_model.budget import GB
from ....skyreels_model.framing import FramedFilm
from ....skyreels_model.grid import SPATIAL_STRIDE, TEMPORAL_STRIDE
from ....skyreels_model.rollout.film import Film
from ....skyreels_model.rollout.parts import decode_stretches, describe_film
from ....skyreels_model.vae.tiles import Tiling
from ..sockets.latent import check_latent, film_parts, make_latent
from ..sockets.memory import explain_lack, require_ram
from ..sockets.vae import OTHER_VAE, HostVAE, check_wan_vae
from ..sockets.vae_streams import decode_latents, make_tiling
from .given import FilmImages


def film_latent(
    film: Film, process_out: Callable[[Tensor], Tensor], images: FilmImages | None
) -> dict[str, Any]:
    """The windows of a film as one LATENT; `process_out` undoes the latents' normalisation.

    `samples` is the film without its overlaps, so that any VAE node can decode it whole; the
    latents given to each window ride along, so that `decode_film` can decode each window exactly
    as it was made. So do the films (T, H, W, 3) that it extends and leads into.
    """
    before = images.video if images else None
    after = images.following if images else None
    return make_latent(*describe_film(film, process_out, before, after))


def decode_film(vae: comfy.sd.VAE, latent: dict[str, Any], tile_size: int = 0) -> Tensor:
    """All frames of a LATENT, (batch * frames, H, W, 3) in 0..1; tile_size px, 0 for automatic."""
    tiling = make_tiling(tile_size)
    check_wan_vae(vae)
    samples = check_latent(latent)
    parts = film_parts(latent, samples)
    films = [film for film in (parts.before, parts.after) if film is not None]
    given = sum(seam.given.shape[2] for seam in parts.seams if seam.given is not None)
    bar = comfy.utils.ProgressBar(len(samples) * (samples.shape[2] + given))

    def decode(latents: Tensor) -> Iterator[Tensor]:
        for piece in decode_pieces(vae, latents, tiling):
            bar.update(-(-piece.shape[2] // TEMPORAL_STRIDE))
            yield piece

    count = sum(seam.frames for seam in parts.seams) + sum(map(len, films))
    height, width = (side * SPATIAL_STRIDE for side in samples.shape[3:])
    whole = len(samples) * count
    require_ram(
        f"samples is a film of {whole} frames at {width} x {height}, which",
        whole * height * width * 3 * 4,
        "make the film shorter or smaller (frames, width, height)",
    )
    frames, position = None, 0
    for sample in samples.split(1):
        made = map(_as_images, decode_stretches(parts.stretches(sample), decode))
        for piece in itertools.chain(_pieces(parts.before), made, _pieces(parts.after)):
            if frames is None:
                frames = _reserve_frames(whole, piece)
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


def _reserve_frames(count: int, like: Tensor) -> Tensor:
    """Room for so many frames of the size of (n, H, W, 3).

    In float32: a film to extend may have come in half precision; the new frames do not.
    """
    height, width = like.shape[1:3]
    needed = count * like[0].numel() * 4 / GB
    what = f"{count} frames of {width} x {height} px, {needed:.1f} GB of RAM"
    with explain_lack(what, "make the film shorter or smaller (frames, width, height)"):
        return like.new_empty((count, *like.shape[1:]), dtype=torch.float32)


def decode_pieces(
    vae: comfy.sd.VAE, latents: Tensor, tiling: Tiling | None = None
) -> Iterator[Tensor]:
    """Frames (1, 3, n, H, W) in 0..1 of raw latents (1, C, F, h, w), piece by piece.

    With our VAE as a stream in constant memory; with any other in one piece. In tiles where asked
    to, with ours also where the device has no room for more.
    """
    if isinstance(vae, HostVAE):
        yield from map(_as_video, decode_latents(vae, latents, tiling))
        return
    with explain_lack("VAE decode", OTHER_VAE):
        if tiling is None:
            frames = vae.decode(latents)
        else:
            sides = {"tile_x": tiling.columns.size, "tile_y": tiling.rows.size}
            frames = vae.decode_tiled(latents, **sides, overlap=tiling.rows.overlap)
    yield _as_video(frames.reshape(-1, *frames.shape[-3:]))


def _as_video(images: Tensor) -> Tensor:
    """(n, H, W, 3) -> (1, 3, n, H, W)"""
    return images.movedim(-1, 0)[None]


def _as_images(video: Tensor) -> Tensor:
    """(1, 3, n, H, W) -> (n, H, W, 3)"""
    return video[0].movedim(0, -1)
