"""How strongly a film follows its prompt: one number, or a curve over the noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from ..rules import require_number

EXAMPLE = "1: 6, 0.5: 4, 0: 1"
MAX_CFG = 100.0


@dataclass(frozen=True)
class GuidanceCurve:
    """Guidance scale over the noise level: linear between points, level beyond the outer ones.

    points: (sigma, cfg) from noise to picture. Two at one sigma are a jump; there the second holds.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, sigma: float) -> float:
        """The guidance scale at a noise level; exactly a point's own where points are equal."""
        above = [point for point in self.points if point[0] >= sigma]
        below = [point for point in self.points if point[0] < sigma]
        if not above or not below:
            return above[-1][1] if above else below[0][1]
        (high, high_cfg), (low, low_cfg) = above[-1], below[0]
        return high_cfg + (low_cfg - high_cfg) * (high - sigma) / (high - low)


@dataclass(frozen=True)
class FilmGuidance:
    """A curve for each of a film's first windows; the last one holds for all that follow."""

    curves: tuple[GuidanceCurve, ...]

    def window(self, index: int) -> GuidanceCurve:
        return self.curves[min(index, len(self.curves) - 1)]


def film_guidance(cfg: float, text: str = "") -> FilmGuidance:
    """The guidance of a film: the curves of `text`, or `cfg` throughout where that is empty.

    text: points `sigma: cfg` with commas between them, from noise (1) to picture (0), such as
    `1: 6, 0.5: 4, 0: 1`; or a number alone. One such curve per window, with semicolons between
    them. Raises ValueError on what cannot be read.
    """
    if not text.strip():
        require_number("cfg", cfg, 0, MAX_CFG)
        return FilmGuidance((GuidanceCurve(((1.0, cfg),)),))
    return FilmGuidance(tuple(_curve(part.strip()) for part in text.strip(" \n;").split(";")))


def _curve(text: str) -> GuidanceCurve:
    if ":" not in text and "," not in text:
        return GuidanceCurve(((1.0, _number(text, text, "cfg", MAX_CFG)),))
    points = tuple(_point(part) for part in text.split(","))
    for (before, _), (sigma, _) in pairwise(points):
        if sigma > before:
            raise ValueError(
                f"cfg_curve has noise level {sigma:g} after {before:g}; points must go from noise "
                f"(1) to picture (0), such as {EXAMPLE}"
            )
    return GuidanceCurve(points)


def _point(text: str) -> tuple[float, float]:
    sigma, _, cfg = text.partition(":")
    return _number(text, sigma, "noise level", 1.0), _number(text, cfg, "cfg", MAX_CFG)


def _number(point: str, text: str, name: str, largest: float) -> float:
    """A number of a point, from 0 to `largest`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= largest:
        nearest = "" if math.isnan(value) else f"; nearest: {min(max(value, 0), largest):g}"
        raise ValueError(
            f"cfg_curve has {point.strip()!r}: its {name} must be a number from 0 to {largest:g}"
            f"{nearest}. A curve is a list of 'noise level: cfg', such as {EXAMPLE}"
        )
    return value
