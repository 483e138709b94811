"""Colour drift over the windows of a film: measured, drawn, and held back.

Each window continues the one before, so small shifts of brightness, contrast and hue add up. They
show in the mean and the covariance of the latents' channels, where they can be undone without a way
through pixels, and in those of frames, which tell more of a small figure. What undoes them is the
optimal transport between two Gaussians, the linear Monge-Kantorovich map of colour transfer: Pitie
and Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping for example-based colour
transfer". Means and deviations of each channel alone (Huang and Belongie 2017, arXiv:1703.06868)
are not enough: hues turn while these stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

LEAST_VARIANCE = 1e-12
RIDGE = 0.01  # added to both covariances, of the mean variance
SIZE = (480, 200)  # px of the plot
MARGIN = (44, 16, 10, 22)  # left, top, right, bottom
SHIFT_COLOUR, SPREAD_COLOUR, DISTANCE_COLOUR = "#f0b429", "#4aa8ff", "#e5635d"
GRID, GROUND = "#44444c", "#1c1c21"


def statistics(latents: Tensor) -> Tensor:
    """Mean and covariance of the channels, (1, C, F, h, w) -> (1 + C, C) float32 on the CPU."""
    x = latents.float().transpose(0, 1).flatten(1)  # (C, F * h * w)
    mean = x.mean(dim=1)
    centred = x - mean[:, None]
    return torch.cat([mean[None], centred @ centred.T / x.shape[1]]).cpu()


def pooled(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """The statistics (1 + C, C) of a whole, of those of its parts and how many frames each has."""
    counts = torch.tensor([count for count, _ in parts], dtype=torch.float64)
    each = torch.stack([part for _, part in parts]).double()  # (N, 1 + C, C)
    share = counts / counts.sum()
    mean = share @ each[:, 0]  # (C,)
    off = each[:, 0] - mean
    spread = torch.einsum("n,nij->ij", share, each[:, 1:] + off[:, :, None] * off[:, None, :])
    return torch.cat([mean[None], spread]).float()


def transport(own: Tensor, reference: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The map x -> matrix @ x + shift that brings statistics (1 + C, C) nearer to a reference's.

    Returns (C, C) and (C,). At strength 0 it changes nothing, at 1 the results are equal; the least
    change that does it. Directions in which there is little contrast are not blown up (`RIDGE`).
    """
    mean, wanted_mean = own[0].double(), reference[0].double()
    eye = torch.eye(len(mean), dtype=torch.float64)
    ridge = (RIDGE * reference[1:].diagonal().mean() + LEAST_VARIANCE).double() * eye
    source, wanted = own[1:].double() + ridge, reference[1:].double() + ridge
    root, inverse = _power(source, 0.5), _power(source, -0.5)
    matrix = inverse @ _power(root @ wanted @ root, 0.5) @ inverse
    matrix = eye + strength * (matrix - eye)
    mean_then = mean + strength * (wanted_mean - mean)
    return matrix.float(), (mean_then - matrix @ mean).float()


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(LEAST_VARIANCE).pow(exponent)) @ vectors.T


def moved(latents: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """matrix @ x + shift for each position's channels; latents (1, C, F, h, w), dtype kept."""
    matrix, shift = matrix.to(latents.device), shift.to(latents.device)
    flat = latents.float()[0].flatten(1)  # (C, F * h * w)
    return (matrix @ flat + shift[:, None]).view_as(latents).to(latents.dtype)


def anchored(latents: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Bring the channels' statistics nearer to a reference's (1 + C, C), by `transport`.

    latents (1, C, F, h, w), any dtype, kept. One map for all positions: what moves stays.
    """
    return moved(latents, *transport(statistics(latents), reference, strength))


@dataclass(frozen=True)
class Drift:
    """A window's statistics against its sequence's first.

    start: its first frame. shift: root mean square over the channels of the change of their means,
    in the first window's standard deviations. spread: mean of their standard deviations as a share
    of the first's. distance: how far the map that undoes it all, turned hues too, moves latents,
    root mean square, as a share of the first window's standard deviation.
    """

    start: int
    shift: float
    spread: float
    distance: float


def measure(start: int, own: Tensor, reference: Tensor) -> Drift:
    """Drift of a window's own statistics (1 + C, C) against a reference's."""
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
        f"window {number}, from frame {d.start}: {_numbers(d.shift, d.spread, d.distance)}"
        for number, d in enumerate(drifts)
    ]
    worst = _numbers(
        max(d.shift for d in drifts),
        max(drifts, key=lambda d: abs(d.spread - 1)).spread,
        max(d.distance for d in drifts),
    )
    return "\n".join([*lines, f"worst: {worst}"])


def _numbers(shift: float, spread: float, distance: float) -> str:
    return f"shift {shift:.3f}, spread {spread:.3f}, distance {distance:.3f}"


def draw(drifts: Sequence[Drift]) -> Tensor:
    """Shift, |spread - 1| and distance by window, (1, H, W, 3) in 0..1; all 0 without drift."""
    left, top, right, bottom = MARGIN
    box = (left, top, SIZE[0] - right, SIZE[1] - bottom)
    lines = {
        SHIFT_COLOUR: [d.shift for d in drifts],
        SPREAD_COLOUR: [abs(d.spread - 1) for d in drifts],
        DISTANCE_COLOUR: [d.distance for d in drifts],
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
    pen.text((box[0] + 160, SIZE[1] - 16), "change of spread", fill=SPREAD_COLOUR)
    pen.text((box[0] + 290, SIZE[1] - 16), "distance", fill=DISTANCE_COLOUR)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]
