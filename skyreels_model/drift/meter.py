"""How far each window's colours are from its sequence's first one's, in numbers and drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .colours import (
    DISTANCE_COLOUR,
    GRID,
    GROUND,
    LEAST_VARIANCE,
    SHIFT_COLOUR,
    SPREAD_COLOUR,
    transport,
)

SIZE = (480, 200)  # px of the plot
UNMEASURED = "cannot be measured: its latents are too large, infinite or not a number"
MARGIN = (44, 16, 10, 22)  # left, top, right, bottom


@dataclass(frozen=True)
class Drift:
    """A window's statistics against its sequence's first.

    start: its first frame. shift: root mean square over the channels of the change of their means,
    in the first window's standard deviations. spread: mean of their standard deviations as a share
    of the first's. distance: how far the map that undoes it all, turned hues too, moves latents,
    root mean square, as a share of the first window's standard deviation. All three are NaN where
    they cannot be measured.
    """

    start: int
    shift: float
    spread: float
    distance: float

    @property
    def measured(self) -> bool:
        return all(map(math.isfinite, (self.shift, self.spread, self.distance)))


def measure(start: int, own: Tensor, reference: Tensor) -> Drift:
    """Drift of a window's own statistics (1 + C, C) against a reference's.

    Never fails: a film must not be lost for want of these numbers. They are NaN where statistics
    are not finite, or so large that the map cannot be computed.
    """
    try:
        found = _measure(start, own, reference)
    except (ValueError, torch.linalg.LinAlgError):
        found = None
    return found if found and found.measured else Drift(start, *[math.nan] * 3)


def _measure(start: int, own: Tensor, reference: Tensor) -> Drift:
    mean, std = _of_each_channel(own)
    first_mean, first_std = _of_each_channel(reference)
    shift = ((mean - first_mean) / first_std).square().mean().sqrt()
    matrix, move = transport(own, reference, 1.0)
    change = matrix - torch.eye(len(mean))
    moved_by = (change @ mean + move).square().sum() + (change @ own[1:] @ change.T).trace()
    distance = (moved_by / first_std.square().sum()).sqrt()
    return Drift(start, float(shift), float((std / first_std).mean()), float(distance))


def _of_each_channel(both: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of each channel, of `statistics`."""
    return both[0], both[1:].diagonal().clamp_min(LEAST_VARIANCE).sqrt()


def describe(drifts: Sequence[Drift]) -> str:
    """A line a window, and the worst of them."""
    lines = [
        f"window {number}, from frame {d.start}: "
        + (_numbers(d.shift, d.spread, d.distance) if d.measured else UNMEASURED)
        for number, d in enumerate(drifts)
    ]
    drifts = [d for d in drifts if d.measured]
    if not drifts:
        return "\n".join(lines)
    worst = _numbers(
        max(d.shift for d in drifts),
        max(drifts, key=lambda d: abs(d.spread - 1)).spread,
        max(d.distance for d in drifts),
    )
    return "\n".join([*lines, f"worst: {worst}"])


def _numbers(shift: float, spread: float, distance: float) -> str:
    return f"shift {shift:.3f}, spread {spread:.3f}, distance {distance:.3f}"


def draw(drifts: Sequence[Drift]) -> Tensor:
    """Shift, |spread - 1| and distance by window, (1, H, W, 3) in 0..1; all 0 without drift.

    Windows that could not be measured are left out.
    """
    left, top, right, bottom = MARGIN
    box = (left, top, SIZE[0] - right, SIZE[1] - bottom)
    measured = [(number, d) for number, d in enumerate(drifts) if d.measured]
    lines = {
        SHIFT_COLOUR: [(number, d.shift) for number, d in measured],
        SPREAD_COLOUR: [(number, abs(d.spread - 1)) for number, d in measured],
        DISTANCE_COLOUR: [(number, d.distance) for number, d in measured],
    }
    highest = max([0.1, *(value for values in lines.values() for _, value in values)])
    picture = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(picture)
    for share in (0, 0.5, 1):
        y = box[3] - share * (box[3] - box[1])
        pen.line((box[0], y, box[2], y), fill=GRID)
        pen.text((4, y - 6), f"{share * highest:.2f}", fill="white")
    step = (box[2] - box[0]) / max(len(drifts) - 1, 1)
    for colour, values in lines.items():
        points = [
            (box[0] + i * step, box[3] - value / highest * (box[3] - box[1])) for i, value in values
        ]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    pen.text((box[0], SIZE[1] - 16), f"shift, over {len(drifts)} windows", fill=SHIFT_COLOUR)
    pen.text((box[0] + 160, SIZE[1] - 16), "change of spread", fill=SPREAD_COLOUR)
    pen.text((box[0] + 290, SIZE[1] - 16), "distance", fill=DISTANCE_COLOUR)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
