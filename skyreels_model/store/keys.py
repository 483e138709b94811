"""The key of a window: equal where everything is equal that decides what it becomes.

A window's key has in it that of the window which it continues. So a change in the middle of a film
changes the keys from there on, up to the next cut, and no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..plan.film_plan import FilmPlan
from ..plan.windows import Window
from ..rollout.conditions import Conditions
from .digests import digest
from .files import FORMAT

# What of a plan tells of the film as a whole: a window has its own share of it in `Window`, and
# what it is given in `Conditions`.
OF_THE_FILM = {"num_frames", "shots", "start", "pictures", "end", "following", "kept_end"}


@dataclass(frozen=True)
class WindowKey:
    """key: as a file's name. parts: the digests of what decides a window, by what it is.

    leads_into: the key of the window that it stands for to what follows, where that stays as it
    is. taken: whether it is a take on disk, which what is known now cannot make again. seed: for
    people.
    """

    index: int
    key: str
    parts: Mapping[str, str]
    leads_into: str = ""
    taken: bool = False
    seed: str = ""

    @property
    def leads(self) -> str:
        """What the next window's key has in it."""
        return self.leads_into or self.key

    @property
    def name(self) -> str:
        """What files of the window have in their names."""
        return f"{self.index:05d}_{self.key}"

    def differences(self, parts: Mapping[str, str]) -> list[str]:
        """What is not as it was where another window was made."""
        names = sorted({*self.parts, *parts})
        return [name for name in names if self.parts.get(name) != parts.get(name)]


class Describer:
    """What decides each window of a film.

    others: what else does besides the plan, by what a person calls it, as what `digest` takes.
    """

    def __init__(
        self,
        plan: FilmPlan,
        conditions: Conditions,
        solver: str,
        others: Callable[[Window], Mapping[str, Any]],
    ) -> None:
        self.plan, self.conditions, self.solver, self.others = plan, conditions, solver, others
        self.numbers = {
            field.name: getattr(plan, field.name)
            for field in dataclasses.fields(plan)
            if field.name not in OF_THE_FILM
        }

    def key(self, index: int, hangs: str, **more: str) -> WindowKey:
        """The key of a window; hangs: that of the one it continues. more: further parts of it."""
        window = self.plan.window_at(index)
        others = self.others(window)
        parts = {
            "schedule": digest([FORMAT, self.numbers, *_place(self.plan, window)]),
            "solver": digest(self.solver),
            "given images": digest(list(_given(self.plan, window, self.conditions))),
            **{name: digest(value) for name, value in others.items()},
            **more,
        }
        seeds = others.get("seed", "")
        seed = ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)
        return WindowKey(index, digest([hangs, parts]), parts, seed=seed)

    def hangs(self, index: int, keys: Sequence[WindowKey]) -> str:
        """The key that a window hangs on, after those before it."""
        goes_on = bool(keys) and self.plan.continues(self.plan.window_at(index))
        return keys[-1].leads if goes_on else ""


def window_keys(
    plan: FilmPlan,
    conditions: Conditions,
    solver: str,
    others: Callable[[Window], Mapping[str, Any]],
) -> list[WindowKey]:
    """The keys of all windows, in the order in which they are made; others: as of `Describer`."""
    describer = Describer(plan, conditions, solver, others)
    keys: list[WindowKey] = []
    for index in range(plan.num_windows):
        keys.append(describer.key(index, describer.hangs(index, keys)))
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
