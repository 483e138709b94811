"""Where a film cuts from shot to shot, found by PySceneDetect, and how long takes are divided.

Of the detectors tried on films with known cuts, its AdaptiveDetector found the most and invented
the fewest. FFmpeg's own would need no package, but took fast pans and flashes for cuts and missed
those in the dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..rules import refusal, require_number
from .clips import Clip, Tick

INSTALL = "pip install scenedetect-headless"
MOST_SHOTS = 1000
SHOWN = 40  # characters of what cannot be read


@dataclass(frozen=True)
class Span:
    """A shot or a part of one: the frames [first, end). cut: a new shot, else it continues."""

    first: int
    end: int
    cut: bool


def find_cuts(clip: Clip, shortest: float, tick: Tick) -> list[int]:
    """The frames, without the first, at which a new shot begins, at least `shortest` s apart.

    Raises ValueError where PySceneDetect is not installed.
    """
    try:
        from scenedetect import AdaptiveDetector, FrameTimecode
    except ImportError:
        raise ValueError(
            f"cuts is empty, and the package that finds them is missing; it must be the seconds of "
            f"the cuts, such as 2.5, 4, or install it: {INSTALL}"
        ) from None
    count = len(clip)
    rate = max(count / clip.second(count), 0.01)
    detector = AdaptiveDetector(min_scene_len=max(round(shortest * rate), 1))
    found = []
    for index, frame in enumerate(clip.go_through(tick)):
        found += detector.process_frame(FrameTimecode(index, rate), frame)
    found += detector.post_process(FrameTimecode(count - 1, rate))
    return [cut.frame_num for cut in found if 0 < cut.frame_num < count]


def read_cuts(text: str, clip: Clip) -> list[int]:
    """The frames nearest to typed seconds such as "2.5, 4"; raises ValueError for others."""
    end = clip.second(len(clip))
    cuts: list[int] = []
    for word in text.replace("\n", ",").split(","):
        if not word.strip():
            continue
        try:
            second = float(word.strip().removesuffix("s"))
        except ValueError:
            rule = "seconds, separated by commas: 2.5, 4"
            raise refusal("cuts", word.strip()[:SHOWN], rule) from None
        require_number("cuts", second, 0, end)
        # One frame has one second; they are in order.
        index = _nearest(clip, second)
        if cuts and index <= cuts[-1]:
            rule = "seconds that go forward, at least a frame apart"
            raise refusal("cuts", text[:SHOWN], rule)
        if 0 < index < len(clip):
            cuts.append(index)
    return cuts


def _nearest(clip: Clip, second: float) -> int:
    low, high = 0, len(clip)
    while low < high:
        middle = (low + high) // 2
        if clip.second(middle) < second:
            low = middle + 1
        else:
            high = middle
    if low and second - clip.second(low - 1) <= clip.second(low) - second:
        return low - 1
    return low


def divide(clip: Clip, cuts: Sequence[int], longest: float) -> list[Span]:
    """The shots between cuts; one longer than `longest` s in equal parts that continue each other.

    `longest` 0 leaves them whole. Raises ValueError for more than 1000 in total.
    """
    spans = []
    for first, end in zip([0, *cuts], [*cuts, len(clip)], strict=True):
        seconds = clip.second(end) - clip.second(first)
        wanted = min(seconds / longest, end - first) if longest else 1
        parts = max(math.ceil(wanted - 1e-6), 1)
        borders = [first + (end - first) * part // parts for part in range(parts + 1)]
        spans += [
            Span(a, b, part == 0)
            for part, (a, b) in enumerate(zip(borders, borders[1:], strict=False))
        ]
    if len(spans) > MOST_SHOTS:
        raise refusal("shots of the video", len(spans), f"at most {MOST_SHOTS}", MOST_SHOTS)
    return spans
