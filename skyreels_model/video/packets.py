"""What the packets of a video file tell of its pictures, none of them decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

EVERY = 500  # packets between two signs of life

Tick = Callable[[float], None]  # called with the share that is done; may raise to end the work


@dataclass(frozen=True)
class Pictures:
    """When the pictures of a stream are shown, in units of `unit` seconds, in order.

    keys: of those that need no other. last: how long the last one is shown. exact: whether the file
    says of each when it is shown; else some times are those of decoding, or missing.
    """

    times: tuple[int, ...]
    keys: tuple[int, ...]
    last: int
    unit: Fraction
    exact: bool


def list_pictures(container: Any, tick: Tick = lambda share: None) -> Pictures:
    """The pictures of a container's first video stream; IndexError where it has none."""
    stream = container.streams.video[0]
    length, rate = float(stream.duration or 0), stream.average_rate or Fraction(25)
    times, keys, exact = [], [], True
    latest, last = None, 0
    for number, packet in enumerate(container.demux(stream)):
        if not packet.size or packet.is_discard:
            continue
        time = packet.dts if packet.pts is None else packet.pts
        exact = exact and packet.pts is not None
        if time is None:
            continue
        if number % EVERY == 0:
            tick(min(max(time / length, 0), 1) if length else 0)
        times.append(time)
        if packet.is_keyframe:
            keys.append(time)
        if latest is None or time > latest:
            latest, last = time, packet.duration
    last = max(last or round(1 / rate / stream.time_base), 1)
    return Pictures(tuple(sorted(times)), tuple(sorted(keys)), last, stream.time_base, exact)
