"""Takes: what a film's folder has of one shot or window beside one another, and the choice of one.

A window with another seed or prompt has another key, so its file lies beside the old one. A take
of a shot is a chain of such files, each made to continue the one before, the first of them what the
film has before the shot. Its number is that of its last file, counted as they were made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..plan.film_plan import FilmPlan
from ..plan.retakes import Retake, place_retakes
from ..rules import refuse
from . import files
from .digests import digest
from .keys import Describer, WindowKey
from .manifest import StoredFilm

SHOWN = 10  # shots or windows whose takes are told
TOLD = ("seed", "leads into")  # of what decides a window, what a take is told with anyhow


@dataclass(frozen=True)
class Take:
    """Windows that were made to follow one another; number: counted from 1."""

    number: int
    keys: tuple[WindowKey, ...]


class TakesOnDisk:
    """The finished windows of a folder, of all films that it was used for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Mapping[str, Any]] = {}

    @cached_property
    def names(self) -> dict[int, list[str]]:
        """The keys of the windows that are there, by number."""
        found: dict[int, list[str]] = {}
        for path in sorted(self.folder.glob(f"window_*{files.ENDING}")):
            number, _, key = path.stem.removeprefix("window_").partition("_")
            if number.isdecimal():
                found.setdefault(int(number), []).append(key)
        return found

    def about(self, index: int, key: str) -> Mapping[str, Any]:
        """What a window's file says of itself; nothing where it is damaged or gone."""
        name = f"window_{index:05d}_{key}{files.ENDING}"
        if name not in self._read:
            try:
                about = files.read_about(self.folder / name)
                valid = isinstance(about.get("parts"), dict)
            except (files.Damaged, OSError):
                valid = False
            self._read[name] = about if valid else {}
        return self._read[name]

    def number(self, index: int, key: str) -> int:
        """A window's number among its takes."""
        found = self.about(index, key).get("take", 1)
        return found if isinstance(found, int) else 1

    def new_number(self, index: int, key: str) -> int:
        """The number of a window that is about to be written: its own where it is there already."""
        there = self.names.get(index, [])
        if key in there and self.about(index, key):
            return self.number(index, key)
        return 1 + max((self.number(index, other) for other in there if other != key), default=0)

    def hanging(self, index: int, hangs: str, schedule: str) -> Iterator[WindowKey]:
        """The windows with this number that continue the one with the key `hangs`.

        schedule: the digest of its place in the film, which must be the same.
        """
        for key in self.names.get(index, []):
            about = self.about(index, key)
            parts = about.get("parts", {})
            if parts.get("schedule") == schedule and digest([hangs, parts]) == key:
                told = (str(about.get(name) or "") for name in ("leads_into", "seed"))
                leads_into, seed = told
                yield WindowKey(index, key, parts, leads_into, seed=seed)

    def takes(self, schedules: Mapping[int, str], hangs: str) -> list[Take]:
        """The takes of windows that follow one another; schedules: as in `hanging`, by number."""
        last, paths = max(schedules), [tuple[WindowKey, ...]()]
        for index, schedule in schedules.items():
            longer = []
            for path in paths:
                before = path[-1].leads if path else hangs
                for key in self.hanging(index, before, schedule):
                    # One that stands for another is followed by what tells nothing of it.
                    if index == last or not key.leads_into:
                        longer.append((*path, key))
            paths = longer
        found = [Take(self.number(last, path[-1].key), path) for path in paths if path]
        return sorted(found, key=lambda take: (take.number, take.keys[-1].key))

    def find_followed(self, index: int, next_key: WindowKey) -> str:
        """The newest window with this number that one with the parts of `next_key` was made after.

        Empty where there is none.
        """
        keys = self.names.get(index, [])
        after = self.names.get(index + 1, [])
        found = [key for key in keys if digest([key, next_key.parts]) in after]
        return max(found, key=lambda key: self.number(index, key), default="")


def retake_keys(
    describer: Describer, retakes: Sequence[Retake], disk: TakesOnDisk
) -> list[WindowKey]:
    """The keys of all windows of a film some of which are retaken, or chosen from those on disk.

    Raises ValueError for what the film or its folder does not have.
    """
    plan = describer.plan
    placed = place_retakes(plan, retakes)
    keys: list[WindowKey] = []
    while (index := len(keys)) < plan.num_windows:
        hangs, retake = describer.hangs(index, keys), placed.get(index)
        if retake is None:
            keys.append(describer.key(index, hangs))
        elif retake.take is not None:
            keys += _choose(describer, retake, hangs, disk)
        else:
            last = retake.only and index == retake.windows(plan)[-1]
            keys.append(_remake(describer, retake, index, hangs, disk if last else None))
    return keys


def _choose(
    describer: Describer, retake: Retake, hangs: str, disk: TakesOnDisk
) -> Iterator[WindowKey]:
    """The keys of a take that is on disk."""
    now = [describer.key(index, "") for index in retake.windows(describer.plan)]
    takes = disk.takes({key.index: key.parts["schedule"] for key in now}, hangs)
    chosen = next((take for take in takes if take.number == retake.take), None)
    if chosen is None:
        there = ", ".join(str(take.number) for take in takes)
        rule = f"one that is on disk and continues what is before it: {there or 'none is'}"
        raise refuse(f"takes has '{retake}: take {retake.take}'; it must be {rule}", "takes")
    for key, current in zip(chosen.keys, now, strict=True):
        taken = dict(key.parts) != dict(current.parts)
        yield WindowKey(key.index, key.key, key.parts, key.leads_into, taken, key.seed)


def _remake(
    describer: Describer, retake: Retake, index: int, hangs: str, disk: TakesOnDisk | None
) -> WindowKey:
    """The key of a window that is made again; disk: where it leads into what stands there."""
    plan, following = describer.plan, index + 1
    if disk is None or following == plan.num_windows:
        return describer.key(index, hangs)
    if not plan.continues(plan.window_at(following)):
        return describer.key(index, hangs)
    retake.require_room(plan, index)
    followed = disk.find_followed(index, describer.key(following, ""))
    if not followed:
        raise refuse(
            f"takes has '{retake} only', and nothing on disk follows it as the film is set now; "
            f"make the film first, or leave out 'only'",
            "takes",
        )
    key = describer.key(index, hangs, **{"leads into": followed})
    return WindowKey(key.index, key.key, key.parts, followed, seed=key.seed)


def describe_takes(film: StoredFilm) -> list[str]:
    """The shots and windows of a film that have several takes, a line each, for people."""
    disk, plan = TakesOnDisk(film.folder), film.plan
    keys = [Path(name).stem.removeprefix("window_").partition("_")[2] for name in film.windows]
    lines: list[str] = []
    told = 0  # the first window of which nothing is told yet
    for index in sorted(index for index, there in disk.names.items() if len(there) > 1):
        if not told <= index < len(keys) or len(lines) == SHOWN:
            continue
        name, windows = _name_windows(plan, index)
        schedules = {
            number: disk.about(number, keys[number]).get("parts", {}).get("schedule", "")
            for number in windows
        }
        takes = disk.takes(schedules, _hangs(plan, disk, index, keys))
        if len(takes) > 1:
            lines.append(_describe(name, takes, keys[windows[-1]]))
            told = windows[-1] + 1
    return lines


def _name_windows(plan: FilmPlan, index: int) -> tuple[str, range]:
    """What a person calls the windows from this one on, and which they are."""
    window = plan.window_at(index)
    retake = Retake("shot", window.shot + 1)
    windows = retake.windows(plan) if len(plan.shots) > 1 or plan.sliding else range(0)
    if windows and windows[0] == index:
        return str(retake), windows
    return f"window {index + 1}", range(index, index + 1)


def _hangs(plan: FilmPlan, disk: TakesOnDisk, index: int, keys: Sequence[str]) -> str:
    if not index or not plan.continues(plan.window_at(index)):
        return ""
    before = keys[index - 1]
    return disk.about(index - 1, before).get("leads_into") or before


def _describe(name: str, takes: Sequence[Take], shown: str) -> str:
    """shown: the key of the last window of the take that is in the film."""
    lasts = {take.number: take.keys[-1] for take in takes}
    here = next((last for last in lasts.values() if last.key == shown), None)

    def tell(number: int) -> str:
        last = lasts[number]
        notes = [f"seed {last.seed}"] if last.seed else []
        if here is last:
            notes.append("in this film")
        elif here is not None:
            others = [what for what in last.differences(here.parts) if what not in TOLD]
            notes += [f"another {', '.join(others)}"] if others else []
        return f"{number} ({', '.join(notes)})" if notes else str(number)

    return f"{name} has takes {', '.join(map(tell, sorted(lasts)))}"
