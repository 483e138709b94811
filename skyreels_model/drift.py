"""Colour drift over the windows of a film: measured, drawn, and held back.

Each window continues the one before, so small shifts of brightness and contrast add up. They show
in the statistics of the latents' channels, where they can be undone without a way through pixels:
Huang and Belongie 2017 (arXiv:1703.06868), there called adaptive instance normalisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

LEAST_STD = 1e-6
SIZE = (480, 200)  # px of the plot
MARGIN = (44, 16, 10, 22)  # left, top, right, bottom
SHIFT_COLOUR, SPREAD_COLOUR, GRID, GROUND = "#f0b429", "#4aa8ff", "#44444c", "#1c1c21"


def statistics(latents: Tensor) -> Tensor:
    """Mean and standard deviation of each channel, (1, C, F, h, w) -> (2, C) float32."""
    x = latents.float().transpose(0, 1).flatten(1)  # (C, F * h * w)
    return torch.stack([x.mean(dim=1), x.std(dim=1, unbiased=False)])


def anchored(latents: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Bring the channels' statistics nearer to a reference's (2, C); 0 leaves them, 1 equals it.

    latents (1, C, F, h, w), any dtype, kept. One shift and one scale a channel: what moves from
    frame to frame stays.
    """
    wanted = reference.to(latents.device)
    own = statistics(latents)
    scale = 1 + strength * (wanted[1] / own[1].clamp_min(LEAST_STD) - 1)  # (C,)
    mean = own[0] + strength * (wanted[0] - own[0])
    shape = (1, -1, 1, 1, 1)
    moved = (latents.float() - own[0].view(shape)) * scale.view(shape) + mean.view(shape)
    return moved.to(latents.dtype)


@dataclass(frozen=True)
class Drift:
    """A window's statistics against its sequence's first.

    start: its first frame. shift: root mean square over the channels of the change of their means,
    in the first window's standard deviations. spread: mean of their standard deviations as a share
    of the first's.
    """

    start: int
    shift: float
    spread: float


def measure(start: int, latents: Tensor, reference: Tensor) -> Drift:
    """Drift of a window's own latents (1, C, F, h, w) against the reference (2, C)."""
    mean, std = statistics(latents).cpu()
    first_mean, first_std = reference.cpu()
    unit = first_std.clamp_min(LEAST_STD)
    shift = ((mean - first_mean) / unit).square().mean().sqrt()
    return Drift(start, float(shift), float((std / unit).mean()))


def describe(drifts: Sequence[Drift]) -> str:
    """A line a window, and the worst of them."""
    lines = [
        f"window {number}, from frame {d.start}: shift {d.shift:.3f}, spread {d.spread:.3f}"
        for number, d in enumerate(drifts)
    ]
    shift = max(d.shift for d in drifts)
    spread = max(drifts, key=lambda d: abs(d.spread - 1)).spread
    return "\n".join([*lines, f"worst: shift {shift:.3f}, spread {spread:.3f}"])


def draw(drifts: Sequence[Drift]) -> Tensor:
    """Shift and |spread - 1| by window, (1, H, W, 3) in 0..1; both would be 0 without drift."""
    left, top, right, bottom = MARGIN
    box = (left, top, SIZE[0] - right, SIZE[1] - bottom)
    lines = {
        SHIFT_COLOUR: [d.shift for d in drifts],
        SPREAD_COLOUR: [abs(d.spread - 1) for d in drifts],
    }
    highest = max(0.1, *(value for values in lines.values() for value in values))
    picture = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(picture)
    for share in (0, 0.5, 1):
        y = box[3] - share * (box[3] - box[1])
        pen.line((box[0], y, box[2], y), fill=GRID)
        pen.text((4, y - 6), f"{share * highest:.2f}", fill="white")
    step = (box[2] - box[0]) / max(len(drifts) - 1, 1)
    for colour, values in lines.items():
        points = [
            (box[0] + i * step, box[3] - value / highest * (box[3] - box[1]))
            for i, value in enumerate(values)
        ]
        pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    pen.text((box[0], SIZE[1] - 16), f"shift, over {len(drifts)} windows", fill=SHIFT_COLOUR)
    pen.text((box[0] + 180, SIZE[1] - 16), "change of spread", fill=SPREAD_COLOUR)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
