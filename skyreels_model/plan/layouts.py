"""Where the windows of a film lie, in the order in which they are made.

Three ways: forwards, each window continuing the one before; backwards from a film to lead into;
and in one sequence, where a single window is as long as the film and a view slides over it.
A layout knows all of its windows in closed form: a film of hours costs nothing up front.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Protocol

from ..grid import TEMPORAL_STRIDE, frame_length, latent_length
from .shots import Part
from .windows import LEFT_FOR_LAST, Run, Window


class Layout(Protocol):
    """The windows of a film."""

    @property
    def count(self) -> int:
        """How many windows there are."""
        ...

    @property
    def latents(self) -> int:
        """The film's latents, without what is shown after it."""
        ...

    def window_at(self, index: int) -> Window:
        """The window with this number; raises IndexError after the last."""
        ...

    def groups(self) -> Iterator[tuple[Window, int]]:
        """Windows, and how many of the film's are like them in all that decides their rows."""
        ...

    def runs(self) -> Iterator[Run]:
        """The film in its order, as it is decoded."""
        ...

    def run_at(self, frame: int) -> Run:
        """The run with this frame of the film."""
        ...

    def new_frames(self, window: Window) -> tuple[int, int]:
        """The frames [start, stop) of the film that a window adds to it."""
        ...


@dataclass(frozen=True)
class Sequences:
    """What the layouts share that go forwards: shots one after the other, cuts between them.

    view, overlap: latents. start: latents given at the film's start. pictures: latents given as
    pictures. end: latents shown after the film. leads_on: whether those are of a film.
    """

    parts: tuple[Part, ...]
    view: int
    overlap: int
    start: int
    pictures: tuple[int, ...]
    end: int
    leads_on: bool

    @property
    def within(self) -> bool:
        """Whether what is shown after the film takes room in the view; one latent does not."""
        return self.end > 1

    @property
    def latents(self) -> int:
        return self.parts[-1].begin + self.parts[-1].latents

    @cached_property
    def _runs(self) -> list[Run]:
        fresh = [part for part in self.parts if part.fresh]
        ends = [*(part.begin for part in fresh[1:]), self.latents]
        frames = accumulate((part.sequence_frames for part in fresh), initial=0)
        return [
            Run(part.begin, frame, end - part.begin, part.sequence_frames)
            for part, end, frame in zip(fresh, ends, frames, strict=False)
        ]

    def runs(self) -> Iterator[Run]:
        return iter(self._runs)

    def run_at(self, frame: int) -> Run:
        return self._runs[bisect.bisect_right(self._runs, frame, key=lambda run: run.frame) - 1]

    def new_frames(self, window: Window) -> tuple[int, int]:
        after = bisect.bisect_right(self._runs, window.start, key=lambda run: run.start)
        run = self._runs[after - 1]
        begin, end = window.start + window.repeated, window.start + window.length
        ends = [min(frame_length(latent - run.start), run.frames) for latent in (begin, end)]
        return run.frame + ends[0], run.frame + ends[1]

    def _sequence_end(self, index: int) -> int:
        """The latent after the sequence that a part belongs to."""
        later = (part.begin for part in self.parts[index + 1 :] if part.fresh)
        return next(later, self.latents)


class Forwards(Sequences):
    """Windows that each continue the last latents of the one before, until a cut.

    With a view of 5 latents and an overlap of 2, a film of 10 (r repeats, n is new):

        latent         0  1  2  3  4  5  6  7  8  9
        window 0       n  n  n  n  n
        window 1                r  r  n  n  n
        window 2                         r  r  n  n

    A window starts view - overlap = 3 latents after the one before it, and the last one ends with
    the film: so there are 1 + ceil((10 - 5) / 3) = 3. A shot that continues the one before it
    begins `overlap` latents earlier, with those as its prefix; after a cut the prefix is shorter
    or empty. In what follows, a *place* is a window's number within its shot.
    """

    @property
    def count(self) -> int:
        return self._firsts[-1]

    def window_at(self, index: int) -> Window:
        if index >= self.count:
            raise IndexError(f"window {index} of {self.count}")
        number = bisect.bisect_right(self._firsts, index) - 1
        return self._window(index, index - self._firsts[number], *self._shots[number])

    def groups(self) -> Iterator[tuple[Window, int]]:
        number = 0
        for shot, part, count, prefix in self._shots:
            # All windows between a shot's first and last are alike but for their pictures; what
            # leads on to another film makes the last but one shorter, too.
            special = {0, count - 1} | {max(count - 2, 0)} | set(self._places(part, count, prefix))
            for place in sorted(special):
                yield self._window(number + place, place, shot, part, count, prefix), 1
            usual = next((place for place in range(count) if place not in special), None)
            if usual is not None:
                window = self._window(number + usual, usual, shot, part, count, prefix)
                yield window, count - len(special)
            number += count

    @cached_property
    def _shots(self) -> list[tuple[int, Part, int, int]]:
        """Of each shot: where it lies, its windows, and the latents that its first repeats."""
        found = []
        sequence = 0  # where the last cut is
        for shot, part in enumerate(self.parts):
            sequence = part.begin if part.fresh else sequence
            prefix = min(self.overlap, part.begin - sequence)
            # What the first window does not hold; each further one adds view - overlap of it.
            more = part.latents + prefix + self._inside(shot) - self.view
            found.append((shot, part, 1 + max(0, -(-more // (self.view - self.overlap))), prefix))
        return found

    @cached_property
    def _firsts(self) -> list[int]:
        """The number of each shot's first window, and how many windows there are."""
        return [0, *accumulate(count for _, _, count, _ in self._shots)]

    def _inside(self, shot: int) -> int:
        """Latents of what follows that take room in the view of a shot's last window."""
        return self.end if self.within and shot == len(self.parts) - 1 else 0

    def _span(self, place: int, shot: int, part: Part, count: int, prefix: int) -> tuple[int, int]:
        """The latents [start, stop) of a shot's window."""
        first, end = part.begin - prefix, part.begin + part.latents
        step = self.view - self.overlap
        start = first + place * step
        if not self.leads_on or shot < len(self.parts) - 1:
            return start, min(start + self.view, end)
        if place == count - 1:
            if place:
                start = self._span(place - 1, shot, part, count, prefix)[1] - self.overlap
            return start, min(start + self.view, end)
        # The last window alone sees what follows. All of one latent may be cut off at the film's
        # end, so two are left for it if they fit.
        left = min(LEFT_FOR_LAST, step - self._inside(shot))
        given = self.overlap if place else max(prefix, self.start)
        return start, max(min(start + self.view, end - left), start + given + 1)

    def _window(
        self, index: int, place: int, shot: int, part: Part, count: int, prefix: int
    ) -> Window:
        """The window at a place of a shot whose first window repeats `prefix` latents."""
        start, stop = self._span(place, shot, part, count, prefix)
        repeated = self.overlap if place else prefix
        return Window(
            index=index,
            start=start,
            length=stop - start,
            prefix=repeated if index else self.start,
            repeated=repeated,
            shot=shot,
            pictures=_within(self.pictures, start + repeated, stop, start),
            end=self.end if stop == self.latents else 0,
        )

    def _places(self, part: Part, count: int, prefix: int) -> Iterator[int]:
        """The windows of a shot that make a latent which is given as a picture."""
        for latent in _within(self.pictures, part.begin, part.begin + part.latents, 0):
            beyond = latent - (part.begin - prefix) - self.view  # of the first window
            place = max(0, beyond // (self.view - self.overlap) + 1)
            yield from {min(place, count - 1), min(place + 1, count - 1)}


class OneSequence(Sequences):
    """One window from cut to cut, however long; a view slides over it."""

    @property
    def count(self) -> int:
        return sum(part.fresh for part in self.parts)

    def window_at(self, index: int) -> Window:
        shots = [shot for shot, part in enumerate(self.parts) if part.fresh]
        if index >= len(shots):
            raise IndexError(f"window {index} of {self.count}")
        shot = shots[index]
        start, stop = self.parts[shot].begin, self._sequence_end(shot)
        return Window(
            index=index,
            start=start,
            length=stop - start,
            prefix=0 if index else self.start,
            shot=shot,
            pictures=_within(self.pictures, start, stop, start),
            end=self.end if stop == self.latents else 0,
        )

    def groups(self) -> Iterator[tuple[Window, int]]:
        return ((self.window_at(index), 1) for index in range(self.count))


@dataclass(frozen=True)
class Backwards:
    """Windows from the last to the first, each leading into the beginning of the one after it.

    With a view of 5 latents and 2 that follow, a window has view - end = 3 of its own (n), which
    are 1 + 4 + 4 frames, of which the last is left out: 8 new frames. A film of 20 frames takes
    ceil(20 / 8) = 3 windows (f is what follows):

        latent         0  1  2  3  4  5  6  7
        window 0                      n  n  n  f  f
        window 1             n  n  n  f  f
        window 2       n  n  f  f

    Window 2 has the rest, 20 - 2 * 8 = 4 frames and the one left out: 2 latents.


    A window's last latent reaches the first frame of what follows, which is left out of it: so
    the latents that are shown after it are those that follow in the same rhythm, and each window
    is decoded on its own. frames: of the film. view, end: latents, `end` of them of what follows.
    """

    frames: int
    view: int
    end: int
    pictures: tuple[int, ...]

    @property
    def _own(self) -> int:
        return self.view - self.end

    @property
    def _chunk(self) -> int:
        """New frames of a whole window."""
        return (self._own - 1) * TEMPORAL_STRIDE

    @property
    def count(self) -> int:
        return -(-self.frames // self._chunk)

    @property
    def _rest(self) -> tuple[int, int]:
        """Latents and frames of the film's first window, which is made last."""
        frames = self.frames - (self.count - 1) * self._chunk
        return latent_length(frames + 1), frames

    @property
    def latents(self) -> int:
        return self._rest[0] + (self.count - 1) * self._own

    def _run(self, place: int) -> Run:
        """The run at a place in the film's order."""
        latents, frames = self._rest
        if place == 0:
            return Run(0, 0, latents, frames, (latents - 1) * TEMPORAL_STRIDE - frames)
        before = place - 1
        return Run(
            latents + before * self._own, frames + before * self._chunk, self._own, self._chunk
        )

    def runs(self) -> Iterator[Run]:
        return map(self._run, range(self.count))

    def run_at(self, frame: int) -> Run:
        frames = self._rest[1]
        return self._run(0 if frame < frames else 1 + (frame - frames) // self._chunk)

    def window_at(self, index: int) -> Window:
        if index >= self.count:
            raise IndexError(f"window {index} of {self.count}")
        run = self._run(self.count - 1 - index)
        return Window(
            index=index,
            start=run.start,
            length=run.latents,
            pictures=_within(self.pictures, run.start, run.start + run.latents, run.start),
            end=self.end,
            skip=run.skip,
        )

    def groups(self) -> Iterator[tuple[Window, int]]:
        latents = self._rest[0]
        starts = [max(0, (latent - latents) // self._own + 1) for latent in self.pictures]
        special = {0, self.count - 1} | {self.count - 1 - place for place in starts}
        for index in sorted(special):
            yield self.window_at(index), 1
        usual = next((index for index in range(self.count) if index not in special), None)
        if usual is not None:
            yield self.window_at(usual), self.count - len(special)

    def new_frames(self, window: Window) -> tuple[int, int]:
        run = self._run(self.count - 1 - window.index)
        return run.frame, run.frame + run.frames


@dataclass(frozen=True)
class KeptEnd:
    """A layout in which the last `kept` latents of one window stand already.

    They are shown after its others, so that it leads into them:

        latent         0  1  2  3  4  5  6  7
        window 0       n  n  n  n  n
        window 1                r  n  n  f  f

    whole: the layout without that. index: of the window.
    """

    whole: Layout
    index: int
    kept: int

    @property
    def count(self) -> int:
        return self.whole.count

    @property
    def latents(self) -> int:
        return self.whole.latents

    def window_at(self, index: int) -> Window:
        return self._keep(self.whole.window_at(index))

    def groups(self) -> Iterator[tuple[Window, int]]:
        return ((self._keep(window), times) for window, times in self.whole.groups())

    def runs(self) -> Iterator[Run]:
        return self.whole.runs()

    def run_at(self, frame: int) -> Run:
        return self.whole.run_at(frame)

    def new_frames(self, window: Window) -> tuple[int, int]:
        return self.whole.new_frames(self.whole.window_at(window.index))

    def _keep(self, window: Window) -> Window:
        if window.index != self.index:
            return window
        length = window.length - self.kept
        pictures = tuple(place for place in window.pictures if place < length)
        return replace(window, length=length, end=self.kept, pictures=pictures)


def _within(pictures: tuple[int, ...], start: int, stop: int, origin: int) -> tuple[int, ...]:
    """The pictures in [start, stop), of sorted ones, counted from `origin`."""
    first, last = (bisect.bisect_left(pictures, end) for end in (start, stop))
    return tuple(latent - origin for latent in pictures[first:last])
