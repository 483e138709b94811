"""Latents of a film to frames in the host: its LATENT, its VAEs, its progress bar.

How windows join is `rollout.parts`' part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ....skyreels_model.budget import GB
from ....skyreels_model.files.mapped import READ, page_out
from ....skyreels_model.framing import PIECE, ClipFrames
from ....skyreels_model.grid import SPATIAL_STRIDE, TEMPORAL_STRIDE
from ....skyreels_model.rollout.film import Film
from ....skyreels_model.rollout.parts import (
    Decode,
    FilmParts,
    MemorySink,
    Sink,
    decode_stretches,
    describe_film,
    film_stretches,
    fingerprint,
    share_of,
)
from ....skyreels_model.store.manifest import StoredFilm
from ....skyreels_model.store.windows import DiskSink, decode_from_disk
from ....skyreels_model.vae.tiles import Tiling
from ....skyreels_model.video.reader import FileFilm
from ....skyreels_model.video.sound import FileSound
from ..sockets.latent import check_latent, film_parts, make_latent
from ..sockets.memory import explain_lack, require_ram
from ..sockets.vae import OTHER_VAE, HostVAE, check_wan_vae
from ..sockets.vae_streams import Convert, decode_latents, make_tiling
from .given import FilmImages

STORED_KEY = "skyreels_v2_stored"  # of a LATENT


@dataclass(frozen=True)
class StoredLatent:
    """The film on a disk that a LATENT is, as long as its numbers have this digest."""

    film: StoredFilm
    digest: str


def film_latent(
    film: Film,
    process_out: Callable[[Tensor], Tensor],
    images: FilmImages | None,
    sink: Callable[[], Sink] = MemorySink,
) -> dict[str, Any]:
    """The windows of a film as one LATENT; `process_out` undoes the latents' normalisation.

    `samples` is the film without its overlaps, so that any VAE node can decode it whole; the
    latents given to each window ride along, so that `decode_film` can decode each window exactly
    as it was made. So do the films (T, H, W, 3) that it extends and leads into. sink: what the
    latents are gathered in.
    """
    before = images.video if images else None
    after = images.following if images else None
    return make_latent(*describe_film(film, process_out, before, after, sink))


@dataclass(frozen=True)
class FilmFrames:
    """All frames of a film, not decoded yet: how many, their size, and how to get them.

    fps: frames a second, 0 where that is not known. pieces: makes them, (n, H, W, 3) in 0..1, a
    few at a time, but for those of the clips that it is given. stored: the film on a disk that has
    these frames and no others. sound: what is heard of clips in files, where they are seen. before,
    after: clips in files that it extends and leads into.
    """

    count: int
    width: int
    height: int
    fps: int
    pieces: Callable[..., Iterator[Tensor]]
    stored: StoredFilm | None = None
    sound: Callable[[], FileSound | None] = lambda: None
    before: FileFilm | None = None
    after: FileFilm | None = None


def open_film(vae: comfy.sd.VAE, latent: dict[str, Any], tile_size: int = 0) -> FilmFrames:
    """The frames of a LATENT, one film of its batch after another; tile_size px, 0 for automatic.

    Raises ValueError for what cannot be decoded, before anything is.
    """
    tiling = make_tiling(tile_size)
    check_wan_vae(vae)
    samples = check_latent(latent)
    parts = film_parts(latent, samples)
    films = [film for film in (parts.before, parts.after) if film is not None]
    given = sum(seam.given.shape[2] for seam in parts.seams if seam.given is not None)
    count = sum(seam.frames for seam in parts.seams) + sum(map(len, films))
    height, width = (side * SPATIAL_STRIDE for side in samples.shape[3:])

    def pieces(*without: FileFilm) -> Iterator[Tensor]:
        decode = decode_with_bar(vae, tiling, len(samples) * (samples.shape[2] + given))
        before, after = (
            None if any(film is one for one in without) else film
            for film in (parts.before, parts.after)
        )
        for sample in samples.split(1):
            yield from _pieces(before)
            made = decode_stretches(parts.stretches(sample), decode)
            for number, piece in enumerate(made):
                yield _as_images(piece)
                if parts.on_disk and number % READ == READ - 1:
                    page_out(samples)
            yield from _pieces(after)

    alone = not films and not tile_size
    stored = _unchanged(latent.get(STORED_KEY), parts, samples) if alone else None

    def sound() -> FileSound | None:
        if isinstance(parts.before, FileFilm):
            return parts.before.sound()
        if isinstance(parts.after, FileFilm):
            return parts.after.sound((count - len(parts.after)) / parts.after.fps)
        return None

    clips = [
        film if len(samples) == 1 and isinstance(film, FileFilm) else None
        for film in (parts.before, parts.after)
    ]
    size = len(samples) * count, width, height
    return FilmFrames(*size, parts.fps, pieces, stored, sound, *clips)


def _unchanged(stored: StoredLatent | None, parts: FilmParts, samples: Tensor) -> StoredFilm | None:
    """The film on a disk, unless other nodes have changed these latents since."""
    if stored is None or stored.digest != parts.digest:
        return None
    # Of latents that are one stretch the record is not held to their numbers.
    changed = parts.simple and fingerprint(samples, parts.on_disk) != parts.digest
    return None if changed else stored.film


def open_stored_film(vae: comfy.sd.VAE, film: StoredFilm, tile_size: int = 0) -> FilmFrames:
    """As `open_film`, of a film on the disk, as far as it is there; without the clips beside it."""
    tiling, plan = make_tiling(tile_size), film.plan
    check_wan_vae(vae)
    shares = [share_of(plan, plan.window_at(index), film.extends) for index in range(film.count)]
    latents = sum(share.window.length for share in shares)
    process_out = comfy.latent_formats.Wan21().process_out

    def pieces() -> Iterator[Tensor]:
        decode = decode_with_bar(vae, tiling, latents, process_out)
        # Not in the film's folder, which may be an archive that is only read.
        folder = Path(folder_paths.get_temp_directory())
        stretches = film_stretches(plan, film.finished(), film.extends, lambda: DiskSink(folder))
        yield from map(_as_images, decode_from_disk(stretches, decode))

    count = sum(share.frames for share in shares)
    stored = None if tile_size else film
    return FilmFrames(count, plan.width, plan.height, plan.fps, pieces, stored)


def decode_with_bar(
    vae: comfy.sd.VAE, tiling: Tiling | None, count: int, convert: Convert | None = None
) -> Decode:
    """`decode_pieces` with a progress bar of so many latents."""
    bar = comfy.utils.ProgressBar(count)

    def decode(latents: Tensor) -> Iterator[Tensor]:
        for piece in decode_pieces(vae, latents, tiling, convert):
            bar.update(-(-piece.shape[2] // TEMPORAL_STRIDE))
            yield piece

    return decode


def decode_film(vae: comfy.sd.VAE, latent: dict[str, Any], tile_size: int = 0) -> Tensor:
    """All frames of a LATENT, (batch * frames, H, W, 3) in 0..1; tile_size px, 0 for automatic."""
    film = open_film(vae, latent, tile_size)
    require_ram(
        f"samples is a film of {film.count} frames at {film.width} x {film.height}, which",
        film.count * film.height * film.width * 3 * 4,
        "make the film shorter or smaller (frames, width, height)",
    )
    frames, position = None, 0
    for piece in film.pieces():
        if frames is None:
            frames = _reserve_frames(film.count, piece)
        frames[position : position + len(piece)] = piece
        position += len(piece)
    assert frames is not None and position == len(frames)
    return frames


def _pieces(film: ClipFrames | Tensor | None) -> Iterator[Tensor]:
    """A given film, a few frames (n, H, W, 3) at a time: the only whole copy is the result."""
    if isinstance(film, Tensor):
        yield from film.split(PIECE)
    elif film is not None:
        yield from film.pieces()


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
    vae: comfy.sd.VAE,
    latents: Tensor,
    tiling: Tiling | None = None,
    convert: Convert | None = None,
) -> Iterator[Tensor]:
    """Frames (1, 3, n, H, W) in 0..1 of latents (1, C, F, h, w), piece by piece.

    With our VAE as a stream in constant memory; with any other in one piece. In tiles where asked
    to, with ours also where the device has no room for more. convert: makes raw latents of them,
    position by position, where they are not.
    """
    convert = convert or (lambda latents: latents)
    if isinstance(vae, HostVAE):
        yield from map(_as_video, decode_latents(vae, latents, tiling, convert))
        return
    latents = convert(latents)
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
