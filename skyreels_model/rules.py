"""One voice for input that is not legal: which it is, what was given, the rule, the nearest."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def refuse(message: str, name: str, nearest: object = None) -> ValueError:
    """The error for an input that is not legal: name is which, nearest the nearest legal one.

    Programs find both in `read_refusal`; the kind of error is Python's own, by which a host shows
    it.
    """
    error = ValueError(message if nearest is None else f"{message}; nearest: {nearest}")
    vars(error).update(name=name, nearest=nearest)
    return error


def read_refusal(error: BaseException) -> tuple[str | None, Any]:
    """Which input an error is about, and the nearest legal one; None where it does not say."""
    told = vars(error)
    return told.get("name"), told.get("nearest")


def refusal(name: str, value: object, rule: str, nearest: object = None) -> ValueError:
    """The error for such a value; no nearest one where there is none, as for a word."""
    shown = f"{value:g}" if isinstance(value, float) else repr(value)
    return refuse(f"{name} is {shown}; it must be {rule}", name, nearest)


def _is_number(value: object) -> bool:
    """Whether it is a real number; a truth value is none, nor is NaN."""
    # NaN alone is not itself; math.isnan has no room for long integers.
    return isinstance(value, Real) and not isinstance(value, bool) and value == value


def require_number(name: str, value: Any, least: float, most: float) -> None:
    """A finite number in [least, most]."""
    rule = f"{least:.10g} to {most:.10g}"
    if not _is_number(value):
        raise refusal(name, value, f"a number, {rule}")
    if not least <= value <= most:
        raise refusal(name, value, rule, f"{min(max(value, least), most):.10g}")


def require_whole(
    name: str, value: Any, least: float, most: float, step: int = 1, form: str = "a whole number"
) -> None:
    """An integer in [least, most], whole steps from the least; form: what they are called."""
    rule = f"{form}, {least:.10g} to {most:.10g}"
    if not _is_number(value):
        raise refusal(name, value, rule)
    inside = min(max(value, least), most)
    nearest = int(least) + round((inside - least) / step) * step
    nearest = min(nearest, int(least + (most - least) // step * step))
    if not isinstance(value, Integral) or value != nearest:
        raise refusal(name, value, rule, nearest)


def require_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise refusal(name, value, "True or False")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise refusal(name, value, f"one of: {', '.join(choices)}")
