"""One voice for input that is not legal: which it is, what was given, the rule, the nearest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def refusal(name: str, value: object, rule: str, nearest: object = None) -> ValueError:
    """The error for such a value; no nearest one where there is none, as for a word."""
    shown = f"{value:g}" if isinstance(value, float) else repr(value)
    ending = "" if nearest is None else f"; nearest: {nearest}"
    return ValueError(f"{name} is {shown}; it must be {rule}{ending}")


def require_number(name: str, value: Any, least: float, most: float) -> None:
    """A finite number in [least, most]."""
    rule = f"{least:.10g} to {most:.10g}"
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or math.isnan(value):
        raise refusal(name, value, f"a number, {rule}")
    if not least <= value <= most:
        raise refusal(name, value, rule, f"{min(max(value, least), most):.10g}")


def require_whole(name: str, value: Any, least: float, most: float) -> None:
    """An integer in [least, most]."""
    require_number(name, value, least, most)
    if not isinstance(value, Integral):
        rule = f"a whole number, {least:.10g} to {most:.10g}"
        raise refusal(name, value, rule, min(max(round(value), int(least)), int(most)))


def require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise refusal(name, value, "True or False")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise refusal(name, value, f"one of: {', '.join(choices)}")


def require_frame_count(name: str, value: int, most: int | None = None) -> None:
    """Whole latents' frames, 4k + 1, at most `most`."""
    if value < 1 or (value - 1) % 4:
        nearest = max(round((value - 1) / 4), 0) * 4 + 1
        nearest = nearest if most is None else min(nearest, most)
        raise refusal(name, value, "of the form 4k + 1 (1, 5, 9, …, 97)", nearest)


def require_multiple(name: str, value: int, multiple: int) -> None:
    if value < multiple or value % multiple:
        nearest = max(round(value / multiple), 1) * multiple
        raise refusal(name, value, f"a multiple of {multiple}", nearest)
