"""Lengths of a film's parts: frames and latents, shots, and the windows that a shot takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..grid import TEMPORAL_STRIDE, latent_length
from ..rules import require_flag, require_whole
from .bounds import BOUNDS


@dataclass(frozen=True)
class Shot:
    """A part of a film with a prompt of its own.

    frames: its length. cut: it begins afresh instead of continuing the shot before. ease: over how
    many of its first frames the prompt before it fades into its own (0: at once).
    """

    frames: int
    cut: bool = False
    ease: int = 0

    def __post_init__(self) -> None:
        require_whole("frames of a shot", self.frames, *BOUNDS["frames"])
        require_whole("ease", self.ease, *BOUNDS["ease"])
        require_flag("cut", self.cut)


@dataclass(frozen=True)
class Part:
    """Where a shot lies in the film: `latents` of them from `begin` on.

    fresh: it begins a sequence, that is the film, or a cut. sequence_frames: the frames of all the
    shots that follow without a cut, itself included where it is fresh.
    """

    begin: int
    latents: int
    fresh: bool
    sequence_frames: int


def lay_out(shots: Sequence[Shot], leads_on: bool = False) -> list[Part]:
    """The shots one after the other, in latents.

    A sequence has exactly its shots' frames in total; borders between them lie on latents, up to
    three frames late. leads_on: a film follows, whose first frame is made as well, so that the
    last latent reaches it. Raises ValueError for a shot too short to have a latent of its own.
    """
    found: list[tuple[int, int, bool, int]] = []
    begin, frames, latents = 0, 0, 0
    for index, shot in enumerate(shots):
        fresh = index == 0 or shot.cut
        if fresh:
            frames = latents = 0
        frames += shot.frames
        reached = frames + int(leads_on and index == len(shots) - 1)
        own = latent_length(reached) - latents
        if own < 1:
            raise ValueError(
                f"shot {index + 1} has {shot.frames} frames; a shot that continues another must "
                f"have at least {TEMPORAL_STRIDE}"
            )
        latents += own
        found.append((begin, own, fresh, frames))
        begin += own
    parts, total = [], 0
    for begin, own, fresh, frames in reversed(found):
        total = max(total, frames)
        parts.append(Part(begin, own, fresh, total))
        total = 0 if fresh else total
    return parts[::-1]
