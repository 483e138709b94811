"""What a person sets of the cache."""

from __future__ import annotations

from dataclasses import dataclass

from ..rules import require_number
from .curves import Curves

BOUNDS: dict[str, tuple[float, float]] = {
    "threshold": (0.0, 1.0),
    "start": (0.0, 1.0),
    "end": (0.0, 1.0),
}


@dataclass(frozen=True)
class CacheSettings:
    """When a model call may be forecast.

    threshold: the error that one model call less may cost, as a share of the velocity; 0 is off.
    start: the share of a window's model calls, at its beginning, that is always made. end: the
    share of a frame's steps that always is at the window's end, as far as frames are at work there,
    and its last call in any case.
    curves: what is known of the model before a window begins.
    Raises ValueError on numbers outside of `BOUNDS`.
    """

    threshold: float = 0.15
    start: float = 0.0
    end: float = 0.1
    curves: Curves | None = None

    def __post_init__(self) -> None:
        for name, bounds in BOUNDS.items():
            require_number(name, getattr(self, name), *bounds)

    def always(self, row: int, rows: int, steps: float) -> bool:
        """Whether the model call number `row` of so many is always made.

        steps: of a frame, by the share of the window's frames that are at work.
        """
        return row < self.start * rows or row >= rows - max(1, self.end * steps)
