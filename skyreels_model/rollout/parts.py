"""How the windows of a film join: the one road from finished latents to frames.

A film is decoded in stretches. With history "pixels" or "picture+latents" a stretch is a window:
the latents given to it are decoded first, so that its own go on as they were made, and left out.
With "latents" it is all windows from cut to cut, which are one sequence of the VAE.

    window 0   g g o o o          g: given latents, decoded and left out
    window 1         g g o o o    o: own latents, kept in the film

`film_stretches` makes them of a plan and its finished windows, one by one as these come, wherever
they come from. `FilmParts` is what has to be known of a film whose own latents lie in one tensor.
`decode_stretches` walks either with any `decode`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..files.mapped import read_through
from ..framing import ClipFrames
from ..grid import TEMPORAL_STRIDE, frame_length
from ..plan.film_plan import FilmPlan
from ..plan.windows import Window
from .film import Film, Windows

# decode(latents (1, C, F, h, w)) -> all of their frames in order, in pieces (1, 3, n, H, W).
Decode = Callable[[Tensor], Iterator[Tensor]]
GivenFilm = ClipFrames | Tensor  # frames (T, H, W, 3), brought to size or not yet


@dataclass(frozen=True)
class Stretch:
    """Latents (1, C, F, h, w) that are decoded as one.

    given: how many of them, at the beginning, are not the film's. skip: how many frames at the
    beginning are left out, those of the given latents among them. frames: how many follow that
    belong to the film.
    """

    latents: Tensor
    given: int
    skip: int
    frames: int


@dataclass(frozen=True)
class Seam:
    """Where latents begin that are decoded as one, the latents given to them, their frames.

    frames: how many of its own frames belong to the film, from frame `skip` of them on.
    """

    start: int
    given: Tensor | None
    frames: int
    skip: int = 0


@dataclass(frozen=True)
class Span:
    """Latents [start, stop) that were made together, and their first frame.

    reference: the number of the span whose colours they were to keep, its own where it began
    afresh.
    """

    start: int
    stop: int
    frame: int
    reference: int


@dataclass(frozen=True)
class FilmParts:
    """How a film's own latents (1, C, F, h, w) were made and are to be decoded.

    before, after: films that it extends and leads into. shape, digest: of the latents that all
    this is true of (`bind_parts`). fps: frames a second, 0 where that is not known. on_disk:
    whether the latents lie there, and are read when they are looked at.
    """

    seams: tuple[Seam, ...]
    spans: tuple[Span, ...]
    before: GivenFilm | None = None
    after: GivenFilm | None = None
    shape: tuple[int, ...] = ()
    digest: str = ""
    fps: int = 0
    on_disk: bool = False

    @property
    def simple(self) -> bool:
        """Whether all of it follows from the latents' shape: one stretch, and nothing given."""
        alone = self.before is None and self.after is None
        return alone and len(self.seams) == 1 and self.seams[0].given is None

    def stretches(self, samples: Tensor) -> Iterator[Stretch]:
        """The stretches of these latents, in the order of the film."""
        ends = [seam.start for seam in self.seams[1:]] + [samples.shape[2]]
        for seam, end in zip(self.seams, ends, strict=True):
            latents, given = samples[:, :, seam.start : end], 0
            if seam.given is not None:
                given = seam.given.shape[2]
                latents = torch.cat([seam.given.to(latents), latents], dim=2)
            yield Stretch(latents, given, frame_length(given) + seam.skip, seam.frames)


def one_window(samples: Tensor, frames: int | None = None) -> FilmParts:
    """Latents that were made, or are to be decoded, as one; `frames` of their frames are shown."""
    count = samples.shape[2]
    frames = frame_length(count) if frames is None else frames
    return bind_parts(samples, (Seam(0, None, frames),), (Span(0, count, 0, 0),))


def bind_parts(
    samples: Tensor,
    seams: Iterable[Seam],
    spans: Iterable[Span],
    before: GivenFilm | None = None,
    after: GivenFilm | None = None,
    fps: int = 0,
    on_disk: bool = False,
) -> FilmParts:
    """`FilmParts` that are true of these latents and of no others."""
    shape, digest = tuple(samples.shape), fingerprint(samples, on_disk)
    return FilmParts(tuple(seams), tuple(spans), before, after, shape, digest, fps, on_disk)


def fingerprint(samples: Tensor, on_disk: bool = False) -> str:
    """A hash of the numbers of latents (B, C, F, h, w), whatever their device and dtype.

    Of every one of them: a second pass may have changed only what a mask leaves free. A minute of
    540P takes half a second, which is nothing beside making or decoding it. on_disk: as of
    `FilmParts`.
    """
    digest = hashlib.blake2b(repr(tuple(samples.shape)).encode(), digest_size=16)
    for latent in read_through(samples, on_disk):
        digest.update(latent.detach().to("cpu", torch.float32).contiguous().numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class WindowShare:
    """What of a window is the film's, after the latents given to it.

    given: how many of its latents, at the beginning, are not the film's. frame, frames: the first
    frame that it adds to the film, and how many. joins: whether the next window in the film goes
    on in the same stretch.
    """

    window: Window
    given: int
    frame: int
    frames: int
    joins: bool

    @property
    def skip(self) -> int:
        return frame_length(self.given) + self.window.skip


@dataclass(frozen=True)
class WindowPart(WindowShare):
    """A finished window (1, C, F, h, w), the latents given to it first, and its share."""

    latents: Tensor


def share_of(plan: FilmPlan, window: Window, extends: bool = False) -> WindowShare:
    """The share of a window of the film; extends: as in `window_parts`."""
    first, stop = plan.new_frames(window)
    given = window.repeated
    if extends and window.index == 0:
        given, first = window.prefix, frame_length(window.prefix)
    joins = _joins_next(plan, window)
    return WindowShare(window, given, first, max(stop - first, 0), joins)


def window_parts(
    plan: FilmPlan, finished: Iterable[Tensor] | Windows, extends: bool = False
) -> Iterator[WindowPart]:
    """The finished windows in the order of the film, one by one; of a film made backwards, which
    begins with the last, all must be there.

    extends: whether the film's given first latents are the end of another film, which stands
    before this one and is not decoded again.
    """
    for window, latents in _in_order(plan, finished):
        share = share_of(plan, window, extends)
        yield WindowPart(**vars(share), latents=latents)


def _in_order(
    plan: FilmPlan, finished: Iterable[Tensor] | Windows
) -> Iterator[tuple[Window, Tensor]]:
    if not plan.backwards:
        yield from zip(plan.windows(), finished, strict=False)
        return
    # Whatever can be asked for one of them is, so that not all have to be in memory.
    windows: Windows = finished if isinstance(finished, Windows) else list(finished)
    for index in reversed(range(len(windows))):
        yield plan.window_at(index), windows[index]


def _joins_next(plan: FilmPlan, window: Window) -> bool:
    """Whether the next window's latents are one sequence of the VAE with this one's."""
    following = window.index + 1
    if plan.history != "latents" or plan.backwards or following == plan.num_windows:
        return False
    return bool(plan.window_at(following).repeated)


def film_stretches(
    plan: FilmPlan,
    finished: Iterable[Tensor] | Windows,
    extends: bool = False,
    sink: Callable[[], Sink] | None = None,
) -> Iterator[Stretch]:
    """The stretches of a film, each as soon as its windows have come from `finished`.

    finished: windows (1, C, F, h, w) as they were made, given latents first; fewer than all, if it
    must be. extends: as in `window_parts`. sink: as in `join_parts`.
    """
    parts = window_parts(plan, finished, extends)
    for first in parts:
        yield join_parts(_joined(first, parts), sink)


def _joined(part: WindowPart | None, others: Iterator[WindowPart]) -> Iterator[WindowPart]:
    """A window, and those that go on in its stretch."""
    while part is not None:
        yield part
        part = next(others, None) if part.joins else None


def stretch_shares(plan: FilmPlan, count: int, extends: bool = False) -> list[list[WindowShare]]:
    """The shares of the first `count` windows made, by stretch, in the order of the film."""
    order = range(count)
    found: list[list[WindowShare]] = [[]]
    for index in reversed(order) if plan.backwards else order:
        share = share_of(plan, plan.window_at(index), extends)
        found[-1].append(share)
        if not share.joins:
            found.append([])
    return [shares for shares in found if shares]


class Sink(Protocol):
    """Takes latents (1, C, n, h, w) one after another, and gives them back as one tensor."""

    def add(self, latents: Tensor) -> None: ...

    def join(self) -> Tensor: ...


class MemorySink:
    """As a `Sink`, in memory."""

    def __init__(self) -> None:
        self.pieces: list[Tensor] = []

    def add(self, latents: Tensor) -> None:
        self.pieces.append(latents)

    def join(self) -> Tensor:
        return torch.cat(self.pieces, dim=2)


def join_parts(parts: Iterable[WindowPart], sink: Callable[[], Sink] | None = None) -> Stretch:
    """The stretch of windows of which each further one continues the latents before it.

    sink: makes what several are gathered in, `MemorySink` by default. With one on the disk at most
    three of them are in memory at once, if they come one by one.
    """
    coming = iter(parts)
    part = next(coming)
    given, skip, frames, latents = part.given, part.skip, part.frames, part.latents
    whole: Sink | None = None
    for part in coming:
        if whole is None:
            whole = (sink or MemorySink)()
            whole.add(latents)
            latents = latents[:, :, :0].clone()  # lets the first go
        whole.add(part.latents[:, :, part.given :])
        frames += part.frames
    return Stretch(latents if whole is None else whole.join(), given, skip, frames)


def describe_film(
    film: Film,
    convert: Callable[[Tensor], Tensor] = lambda latents: latents,
    before: GivenFilm | None = None,
    after: GivenFilm | None = None,
    sink: Callable[[], Sink] = MemorySink,
) -> tuple[Tensor, FilmParts]:
    """The film's own latents in one tensor, without overlaps, and how to decode them.

    convert: what is done to all latents, position by position. before, after: as in `FilmParts`.
    sink: makes what the latents are gathered in.
    """
    plan, extends = film.plan, before is not None
    own, shown = sink(), sink()
    spans: list[Span] = []
    found: list[_Begin] = []
    start = first = 0
    goes_on = False
    for part in window_parts(plan, film.finished, extends):
        given, latents = part.latents.tensor_split([part.given], dim=2)
        own.add(convert(latents))
        if goes_on:
            found[-1].frames += part.frames
        else:
            found.append(_Begin(start, first, part.given, part.frames, part.window.skip))
            if part.given:
                shown.add(convert(given))
                first += part.given
        spans += _window_spans(plan, part, start, spans)
        start, goes_on = start + latents.shape[2], part.joins
    samples, whole = own.join(), shown.join() if first else None
    seams = [begin.seam(whole) for begin in found]
    on_disk = sink is not MemorySink
    return samples, bind_parts(samples, seams, spans, before, after, plan.fps, on_disk)


@dataclass
class _Begin:
    """Where a stretch begins, among the film's own latents and among those given."""

    start: int
    first: int
    given: int
    frames: int
    skip: int

    def seam(self, given: Tensor | None) -> Seam:
        """given: those of all stretches in one tensor."""
        own = None
        if given is not None and self.given:
            own = given[:, :, self.first : self.first + self.given]
        return Seam(self.start, own, self.frames, self.skip)


def _window_spans(plan: FilmPlan, share: WindowPart, start: int, before: list[Span]) -> list[Span]:
    """A window's own latents; of one sequence as many at a time as a view shows."""
    window, frame, number = share.window, share.frame, len(before)
    count = share.latents.shape[2] - share.given
    if plan.sliding:
        view = plan.shown_latents(window)
        # After given latents that are left out every one has four frames.
        whole = count < window.length
        return [
            Span(
                i,
                min(i + view, start + count),
                frame + ((i - start) * TEMPORAL_STRIDE if whole else frame_length(i - start)),
                number,
            )
            for i in range(start, start + count, view)
        ]
    reference = number
    if plan.backwards:
        reference = plan.num_windows - 1
    elif window.repeated:
        reference = before[-1].reference
    return [Span(start, start + count, frame, reference)]


def decode_stretches(stretches: Iterable[Stretch], decode: Decode) -> Iterator[Tensor]:
    """The frames of the film in order, (1, 3, n, H, W), piece by piece."""
    for stretch in stretches:
        yield from trim(decode(stretch.latents), stretch.skip, stretch.frames)


def trim(pieces: Iterable[Tensor], skip: int, frames: int | None = None) -> Iterator[Tensor]:
    """Pieces (1, 3, n, H, W) without their first `skip` frames, and only the `frames` after them.

    Pieces of which nothing is left do not come, and none is asked for that is not needed.
    """
    if frames == 0:
        return
    for piece in pieces:
        shown = piece[:, :, skip:]
        skip -= min(skip, piece.shape[2])
        if frames is not None:
            shown = shown[:, :, :frames]
            frames -= shown.shape[2]
        if shown.shape[2]:
            yield shown
        if frames == 0:
            return
