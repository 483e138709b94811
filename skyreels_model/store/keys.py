"""The key of a window: equal where everything is equal that decides what it becomes.

A window's key has in it that of the window which it continues. So a change in the middle of a film
changes the keys from there on, up to the next cut, and no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..plan.film_plan import FilmPlan
from ..plan.windows import Window
from ..rollout.conditions import Conditions
from .digests import digest
from .files import FORMAT

# What of a plan tells of the film as a whole: a window has its own share of it in `Window`, and
# what it is given in `Conditions`.
OF_THE_FILM = {"num_frames", "shots", "start", "pictures", "end", "following"}


@dataclass(frozen=True)
class WindowKey:
    """key: as a file's name. parts: the digests of what decides a window, by what it is."""

    index: int
    key: str
    parts: Mapping[str, str]

    @property
    def name(self) -> str:
        """What files of the window have in their names."""
        return f"{self.index:05d}_{self.key}"

    def differences(self, parts: Mapping[str, str]) -> list[str]:
        """What is not as it was where another window was made."""
        names = sorted({*self.parts, *parts})
        return [name for name in names if self.parts.get(name) != parts.get(name)]


def window_keys(
    plan: FilmPlan,
    conditions: Conditions,
    solver: str,
    others: Callable[[Window], Mapping[str, Any]],
) -> list[WindowKey]:
    """The keys of all windows, in the order in which they are made.

    others: what else decides a window, by what a person calls it, as what `digest` takes.
    """
    numbers = {
        field.name: getattr(plan, field.name)
        for field in dataclasses.fields(plan)
        if field.name not in OF_THE_FILM
    }
    keys: list[WindowKey] = []
    for window in plan.windows():
        parts = {
            "schedule": digest([FORMAT, numbers, *_place(plan, window)]),
            "solver": digest(solver),
            "given images": digest(list(_given(plan, window, conditions))),
            **{name: digest(value) for name, value in others(window).items()},
        }
        before = keys[-1].key if keys and plan.continues(window) else ""
        keys.append(WindowKey(window.index, digest([before, parts]), parts))
    return keys


def _place(plan: FilmPlan, window: Window) -> list[Any]:
    """What of a window's place decides it: in a film of windows not where in the film it lies."""
    # What is shown after it is a picture, which stays clean, or a film's beginning.
    leads_on = bool(window.end and plan.following)
    if not plan.sliding:
        window = dataclasses.replace(window, start=0, shot=0)
    return [window, leads_on, plan.backwards]


def _given(plan: FilmPlan, window: Window, conditions: Conditions) -> Iterator[Any]:
    """What of the given latents a window sees."""
    if window.prefix and not window.repeated:
        yield conditions.start
    for place in window.pictures:
        yield conditions.pictures[window.start + place]
    if window.end and not (plan.backwards and window.index):
        yield conditions.after
    if conditions.source is not None:
        yield conditions.source[:, :, window.start : window.start + window.length]
