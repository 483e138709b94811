"""Frames of a video file, at any frame rate, only those that are asked for."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..framing import PIECE, fit_image, resample
from ..rules import read_refusal, refusal
from .opening import Source, decode_from, open_file
from .packets import list_pictures
from .sound import FileSound


@dataclass(frozen=True)
class Index:
    """When each frame of a file is shown, in the order in which they are shown.

    times: in units of `unit` seconds; or numbers of frames, where the file has no times (counted).
    end: when the last one is gone.
    """

    times: tuple[int, ...]
    end: int
    unit: Fraction
    counted: bool


@dataclass(frozen=True)
class FileFilm:
    """A video file as a film of a size and a frame rate; as `framing.FramedFilm`, not in memory.

    name: the input that it came by. begin, seconds: the part of it; 0 seconds is up to the end.
    from_end: whether its last frame is one of the film's, else its first. The others are the
    nearest in time, as by `framing.resample`.
    """

    name: str
    source: Source
    fps: int
    width: int
    height: int
    fit: str = "crop"
    begin: float = 0.0
    seconds: float = 0.0
    from_end: bool = False

    @cached_property
    def index(self) -> Index:
        found = read_index(self.source, self.name)
        first = found.times[0] + Fraction(self.begin).limit_denominator(10**6) / found.unit
        last: Fraction | int = found.end
        if self.seconds:
            last = min(last, first + Fraction(self.seconds).limit_denominator(10**6) / found.unit)
        times = tuple(time for time in found.times if first <= time < last)
        if not times:
            rule = "a video with at least one frame in the part that is used"
            raise refusal(self.name, f"a video from {self.begin:g} s on", rule)
        return Index(times, int(last), found.unit, found.counted)

    @property
    def rate(self) -> Fraction:
        """The file's own frames a second, on average."""
        times = self.index.times
        span = (times[-1] - times[0]) * self.index.unit
        return (len(times) - 1) / span if span else Fraction(self.fps)

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Which of the file's frames are the film's, in order."""
        index, times, step = self.index, self.index.times, 1 / self.rate / self.index.unit
        even = (abs(time - times[0] - place * step) for place, time in enumerate(times))
        # Times in milliseconds are not even to the unit.
        if all(off < step / 4 for off in even):
            return resample(len(times), _round_rate(self.rate), self.fps, self.from_end)
        span = (times[-1] - times[0]) * index.unit
        count = int(span * self.fps) + 1
        numbers = range(count - 1, -1, -1) if self.from_end else range(count)
        first = times[-1] if self.from_end else times[0]
        sign = -1 if self.from_end else 1
        wanted = (first + sign * number / self.fps / index.unit for number in numbers)
        return tuple(_nearest(times, Fraction(time)) for time in wanted)

    def __len__(self) -> int:
        return len(self.places)

    def frames(self, start: int, stop: int) -> Iterator[Tensor]:
        """The film's frames [start, stop), (height, width, 3) in 0..1."""
        wanted = self.places[start:stop]
        if wanted:
            with explain_reading(self.name):
                yield from self._decode(wanted)

    def _decode(self, wanted: Sequence[int]) -> Iterator[Tensor]:
        decoded = decode_frames(self.source, self.index, wanted[0], wanted[-1])
        position, shown = -1, None
        for place in wanted:
            while position < place:
                position, image = next(decoded, (len(self.index.times), None))
                if image is not None:
                    shown = fit_image(image, self.width, self.height, self.fit, "bicubic")
            if shown is None:
                raise refusal(self.name, "a video that cannot be decoded", "a video that plays")
            yield shown

    def cut(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The frames [start, stop), (n, height, width, 3) in 0..1."""
        start, stop, _ = slice(start, stop).indices(len(self))
        return torch.stack(list(self.frames(start, stop)))

    def pieces(self) -> Iterator[Tensor]:
        """All frames, a few at a time."""
        kept: list[Tensor] = []
        for frame in self.frames(0, len(self)):
            kept.append(frame)
            if len(kept) == PIECE:
                yield torch.stack(kept)
                kept = []
        if kept:
            yield torch.stack(kept)

    def sound(self, begin: float = 0.0) -> FileSound | None:
        """What is heard with it, after so many seconds of silence; None where that is nothing."""
        with explain_reading(self.name), open_file(self.source) as container:
            # Where FFmpeg has no decoder, there is no codec context.
            heard = [one for one in container.streams.audio if one.codec_context is not None]
        if not heard:
            return None
        start = float(self.index.times[self.places[0]] * self.index.unit)
        return FileSound(self.source, start, len(self) / self.fps, begin)

    def describe(self) -> str:
        """What becomes of its frame rate, for people."""
        own = f"{self.name}: {len(self.index.times)} frames at {float(self.rate):.5g} a second"
        if len(self) == len(self.index.times):
            return f"{own}, as the schedule's"
        return f"{own}, taken as {len(self)} at the schedule's {self.fps}"


def _round_rate(rate: Fraction) -> Fraction:
    """The rate that is meant by times in milliseconds."""
    for unit in (Fraction(1), Fraction(1000, 1001)):
        near = round(rate / unit) * unit
        if abs(near - rate) < rate / 20000:
            return near
    return rate


def _nearest(times: Sequence[int], time: Fraction) -> int:
    """The place of the time that is nearest."""
    after = min(bisect.bisect_left(times, time), len(times) - 1)
    before = max(after - 1, 0)
    return before if time - times[before] <= times[after] - time else after


def read_index(source: Source, name: str) -> Index:
    """When each frame is shown, by the file's packets; nothing is decoded where they have times.

    Raises ValueError, which names the input, for what is no video.
    """
    with explain_reading(name, "a file without pictures"):
        found = _index_packets(source) or _count_frames(source)
    if not found.times:
        raise refusal(name, "a file without pictures", "a video that FFmpeg can read")
    return found


@contextlib.contextmanager
def explain_reading(name: str, what: str = "a video that cannot be decoded") -> Iterator[None]:
    """Whatever FFmpeg says of a file becomes a refusal of the input that it came by."""
    import av

    try:
        yield
    except (av.FFmpegError, OSError, ValueError, IndexError, ArithmeticError) as error:
        if read_refusal(error)[0]:
            raise
        why = getattr(error, "strerror", None) or error
        rule = "a video that FFmpeg can read"
        raise refusal(name, f"{what} ({why})", rule) from error


def _index_packets(source: Source) -> Index | None:
    """By the times of the packets; None where they have none."""
    with open_file(source) as container:
        found = list_pictures(container)
    if not found.times or not found.exact:
        return None
    return Index(found.times, found.times[-1] + found.last, found.unit, False)


def _count_frames(source: Source) -> Index:
    """By decoding all of a file without times."""
    with open_file(source) as container:
        stream = container.streams.get(video=0)[0]
        count = sum(1 for _ in container.decode(stream))
        return Index(tuple(range(count)), count, 1 / Fraction(stream.average_rate or 25), True)


def decode_frames(
    source: Source, index: Index, first: int, last: int
) -> Iterator[tuple[int, Tensor]]:
    """The frames from number `first` to `last` of an index, each (H, W, 3) in 0..1, upright.

    Decoding begins at the last picture before them that needs none before it.
    """
    for time, frame in _decode_times(source, index, first):
        place = bisect.bisect_left(index.times, time)
        if place == len(index.times) or index.times[place] != time:
            continue
        if place > last:
            return
        if place >= first:
            yield place, to_image(frame)


def _decode_times(source: Source, index: Index, first: int) -> Iterator[tuple[int, Any]]:
    """Frames and their times, from number `first` at the latest on."""
    if index.counted or not first:
        with open_file(source) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream)):
                yield number if index.counted else frame.pts, frame
        return
    time = index.times[first]
    jumps = [time - round(seconds / index.unit) for seconds in (0, 2, 10)]
    for frame in decode_from(source, time, jumps):
        yield frame.pts, frame


def to_image(frame: Any) -> Tensor:
    """A decoded frame as (H, W, 3) in 0..1, upright; with more than 8 bits where it has them."""
    deep = max(part.bits for part in frame.format.components) > 8
    levels = frame.to_ndarray(format="rgb48le" if deep else "rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90)
    if turns % 4:
        levels = np.rot90(levels, turns)
    image = torch.from_numpy(np.ascontiguousarray(levels).astype(np.float32))
    return image / (65535 if deep else 255)
