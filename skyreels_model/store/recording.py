"""A film's windows as videos, each as soon as it is finished, in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from ..plan.film_plan import FilmPlan
from ..rollout.film import Film
from ..rollout.parts import (
    Decode,
    WindowPart,
    WindowShare,
    join_parts,
    share_of,
    stretch_shares,
)
from ..video.segments import SegmentFolder, write_playlist
from ..video.unfinished import UNFINISHED
from ..video.writer import FilmWriter
from .digests import digest
from .files import remove
from .windows import DiskSink, decode_from_disk

VIDEOS = "video"  # in a film's folder


def segment_paths(
    segments: SegmentFolder, plan: FilmPlan, names: Sequence[str], count: int, extends: bool
) -> list[Path]:
    """The files of the stretches of a film's first `count` windows, in the order of the film.

    names: of the windows, in the order in which they are made.
    """
    found = stretch_shares(plan, count, extends)
    return [_path(segments, names, shares) for shares in found if any(one.frames for one in shares)]


def _path(segments: SegmentFolder, names: Sequence[str], shares: Sequence[WindowShare]) -> Path:
    last = max(share.window.index for share in shares)
    name = names[last]
    if len(shares) > 1:
        # A take may stand in the place of another, of which what follows knows nothing.
        name += f"-{digest([names[share.window.index] for share in shares])[:8]}"
    return segments.path(name, shares[0].skip, sum(share.frames for share in shares))


class Recorder:
    """Writes the stretches of a film in the making.

    names: of its windows, as files have them. decode: normalised latents to frames in 0..1. Where a
    window's frames are decoded for the next one, by way of `decode`, they are written on the way.
    """

    def __init__(
        self,
        segments: SegmentFolder,
        film: Film,
        names: Sequence[str],
        extends: bool,
        to_frames: Decode,
    ) -> None:
        self.segments, self.film, self.names, self.extends = segments, film, names, extends
        self.to_frames = to_frames
        self.paths: list[Path] = []  # in the order of the film
        for left in sorted(segments.folder.glob(f"*{UNFINISHED}")):
            remove(left)

    def decode(self, latents: Tensor) -> Iterator[Tensor]:
        """As `to_frames`, for the history of the film's current window."""
        film, plan = self.film, self.film.plan
        whole = latents.shape[2] == plan.window_at(film.window).length
        shares = self._stretch(film.window)
        path = _path(self.segments, self.names, shares) if shares else None
        if plan.backwards or not whole or path is None or len(shares) > 1 or path.exists():
            yield from self.to_frames(latents)
            return
        position, begin = 0, shares[0].skip
        stop = begin + shares[0].frames
        with self._open(path) as writer:
            for piece in self.to_frames(latents):
                shown = piece[:, :, max(begin - position, 0) : max(stop - position, 0)]
                position += piece.shape[2]
                if shown.shape[2]:
                    writer.write(shown[0].movedim(0, -1))
                yield piece

    def finish_window(self) -> None:
        """Write the stretch that ends with the window made last, unless it is there."""
        film = self.film
        shares = self._stretch(film.window - 1)
        if not shares or not sum(share.frames for share in shares):
            return
        path = _path(self.segments, self.names, shares)
        if not path.exists():
            parts = (
                WindowPart(**vars(share), latents=film.finished[share.window.index])
                for share in shares
            )
            stretch = join_parts(parts, lambda: DiskSink(self.segments.folder))
            with self._open(path) as writer:
                for piece in decode_from_disk([stretch], self.to_frames):
                    writer.write(piece[0].movedim(0, -1))
        self.paths.insert(0 if film.plan.backwards else len(self.paths), path)
        write_playlist(self.segments.folder, self.paths)

    def _stretch(self, index: int) -> list[WindowShare]:
        """The windows of the stretch that ends with this one; none where it goes on."""
        plan = self.film.plan
        shares = [share_of(plan, plan.window_at(index), self.extends)]
        if shares[0].joins:
            return []
        while index and not plan.backwards:
            index -= 1
            share = share_of(plan, plan.window_at(index), self.extends)
            if not share.joins:
                break
            shares.insert(0, share)
        return shares

    def _open(self, path: Path) -> FilmWriter:
        return FilmWriter(path, self.segments.settings, self.segments.rate)
