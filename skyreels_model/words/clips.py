"""Films to look at: frames in memory, or a file of which only the wanted frames are decoded."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..rules import refusal, require_number
from ..video.opening import Source, decode_from, open_file
from ..video.packets import Tick, list_pictures

SAMPLES = 16  # frames that the published captioner sees of a shot, however long
SIZE = (420, 360)  # height and width that it sees them at, whatever the film's proportions
SMALL = 256  # pixels of the long side of frames that are only compared
PIECE = 16  # frames that are made small together
LATE = 3  # jumps to earlier pictures before a file is read from its beginning


def sample_indices(first: int, end: int, samples: int = SAMPLES) -> list[int]:
    """The frames that stand for the frames [first, end): evenly spaced, the last one not reached.

    Few frames are repeated. Source: SkyworkAI/SkyReels-V2 skycaptioner_v1 vllm_struct_caption.py.
    """
    step = (end - first - 1) / samples
    return [first + round(step * number) for number in range(samples)]


def fit_size(height: int, width: int, keep_proportions: bool) -> tuple[int, int]:
    """Height and width of frames for a captioner: the published, or as many pixels as those."""
    if not keep_proportions:
        return SIZE
    scale = (SIZE[0] * SIZE[1] / (height * width)) ** 0.5
    return max(round(height * scale), 1), max(round(width * scale), 1)


class Clip(Protocol):
    """A film whose frames can be counted, placed in time, and looked at."""

    def __len__(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as shown."""
        ...

    def second(self, index: int) -> float:
        """When a frame is shown; of the count of frames, when the last one ends."""
        ...

    def take(self, indices: Sequence[int], height: int, width: int) -> Tensor:
        """These frames in this size, (n, height, width, 3), uint8."""
        ...

    def go_through(self, tick: Tick) -> Iterator[np.ndarray]:
        """All frames in order and small, (h, w, 3), uint8, blue first."""
        ...


class ImageClip:
    """Frames (T, H, W, 1, 3 or 4) in 0..1 in memory, `fps` of them a second."""

    def __init__(self, images: Tensor, fps: float) -> None:
        require_number("fps", fps, 0.01, 1000)
        if images.ndim != 4 or 0 in images.shape:
            raise refusal("images", tuple(images.shape), "at least one image, (T, H, W, channels)")
        self.images, self.fps = images, fps

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        return self.images.shape[1], self.images.shape[2]

    def second(self, index: int) -> float:
        return index / self.fps

    def take(self, indices: Sequence[int], height: int, width: int) -> Tensor:
        frames = self._colours(self.images[list(indices)])
        frames = functional.interpolate(
            frames, (height, width), mode="bicubic", antialias=True
        ).clamp(0, 1)
        return (frames * 255).round().byte().movedim(1, 3)

    def go_through(self, tick: Tick) -> Iterator[np.ndarray]:
        height, width = _small(*self.size)
        for start in range(0, len(self), PIECE):
            tick(start / len(self))
            frames = self._colours(self.images[start : start + PIECE])
            frames = functional.interpolate(frames, (height, width), mode="area").clamp(0, 1)
            yield from (frames * 255).round().byte().movedim(1, 3).flip(3).numpy()

    def _colours(self, images: Tensor) -> Tensor:
        """(n, 3, H, W), float32, on the CPU."""
        images = images.detach().to("cpu", torch.float32)
        if not images.isfinite().all():
            raise refusal("images", "not finite", "finite numbers: the node that made them failed")
        channels = images[..., :3] if images.shape[3] >= 3 else images[..., :1].repeat(1, 1, 1, 3)
        return channels.movedim(3, 1).clamp(0, 1)


class FileClip:
    """A film in a file, or in the bytes of one; `start` and `duration` (0: all) cut it, in seconds.

    Its packets are read once for their times, none of them decoded. Raises ValueError where it
    cannot be read or has no frames.
    """

    def __init__(
        self,
        source: Source,
        start: float = 0.0,
        duration: float = 0.0,
        tick: Tick = lambda share: None,
    ) -> None:
        self.source = source
        with _explain(), open_file(source) as container:
            if not container.streams.video:
                raise refusal("video", "without pictures", "a file with a video stream")
            found = list_pictures(container, tick)
            first = int(start / found.unit)
            end = int((start + duration) / found.unit) if duration else None
            # Broken files tell some times twice.
            times = sorted(set(found.times))
            self.times = [t for t in times if t >= first and (end is None or t < end)]
            if not self.times:
                raise refusal("video", "without frames", "at least one frame long")
            self.keys, self.base = found.keys, float(found.unit)
            self.last = found.last * self.base
            one = self._first(self.times[0])[0]
            sides = (one.height, one.width)
            self.size = sides[::-1] if _turns(one) % 2 else sides

    def __len__(self) -> int:
        return len(self.times)

    def second(self, index: int) -> float:
        if index < len(self):
            return (self.times[index] - self.times[0]) * self.base
        return self.second(len(self) - 1) + self.last

    def take(self, indices: Sequence[int], height: int, width: int) -> Tensor:
        found: dict[int, Tensor] = {}
        with _explain():
            frames: Iterator[Any] = iter(())
            frame: Any = None
            for time in sorted({self.times[index] for index in indices}):
                if frame is None or frame.pts < self._key(time):
                    frame, frames = self._first(time)
                while frame.pts < time:
                    following = next(frames, None)
                    if following is None:  # broken off: the last frame that could be read
                        break
                    frame = following
                found[time] = torch.from_numpy(_show(frame, height, width, "rgb24"))
        return torch.stack([found[self.times[index]] for index in indices])

    def go_through(self, tick: Tick) -> Iterator[np.ndarray]:
        height, width = _small(*self.size)
        with _explain():
            for number, frame in enumerate(self._decode(self.times[0])):
                if number % PIECE == 0:
                    tick(min(number / len(self), 1))
                if frame.pts > self.times[-1]:
                    return
                if frame.pts >= self.times[0]:
                    yield _show(frame, height, width, "bgr24")

    def _first(self, time: int) -> tuple[Any, Iterator[Any]]:
        """The first frame of `_decode`, and those after it."""
        frames = self._decode(time)
        first = next(frames, None)
        if first is None:
            raise refusal("video", "without frames that can be decoded", "a whole video file")
        return first, frames

    def _key(self, time: int, before: int = 0) -> int:
        """The last whole picture up to a time, or one so many before it."""
        place = bisect.bisect_right(self.keys, time) - before
        return self.keys[place - 1] if place > 0 else self.times[0]

    def _decode(self, time: int) -> Iterator[Any]:
        return decode_from(self.source, time, [self._key(time, n) for n in range(LATE)])


@contextmanager
def _explain() -> Iterator[None]:
    """FFmpeg's errors in words."""
    import av

    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(
            f"video cannot be read ({error}); it must be a whole video file"
        ) from error


def _small(height: int, width: int) -> tuple[int, int]:
    scale = min(SMALL / max(height, width), 1)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _turns(frame: Any) -> int:
    """Quarter turns that a player gives a frame, as phones write them."""
    return round(frame.rotation / 90) % 4


def _show(frame: Any, height: int, width: int, layout: str) -> np.ndarray:
    """A decoded frame as a player shows it, in this size."""
    turns = _turns(frame)
    sides = (width, height) if turns % 2 else (height, width)
    small = frame.reformat(sides[1], sides[0], format=layout, interpolation="BICUBIC")
    return np.ascontiguousarray(np.rot90(small.to_ndarray(), turns))
