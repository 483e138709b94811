"""One voice for numbers that are not legal: the input, the value, the rule, the nearest."""

from __future__ import annotations

from collections.abc import Sequence


def require_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}; it must be a whole number")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of: {'; '.join(choices)}")


def require_frame_count(name: str, value: int, most: int | None = None) -> None:
    if value < 1 or (value - 1) % 4:
        nearest = max(round((value - 1) / 4), 0) * 4 + 1
        nearest = nearest if most is None else min(nearest, most)
        raise ValueError(
            f"{name} is {value}; it must be of the form 4k + 1 (1, 5, 9, …, 97); nearest: {nearest}"
        )


def require_multiple(name: str, value: int, multiple: int) -> None:
    if value < multiple or value % multiple:
        nearest = max(round(value / multiple), 1) * multiple
        raise ValueError(
            f"{name} is {value}; it must be a multiple of {multiple}; nearest: {nearest}"
        )
