"""From what a person sets to a plan: a preset, a length in seconds, noise levels of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..grid import frames_of_seconds
from ..schedule.flow import custom_schedule
from .film_plan import FilmPlan
from .presets import CUSTOM, PRESETS, describe_preset, describe_sliding


@dataclass(frozen=True)
class Choice:
    """A plan, what is to be said of how it came about, and which of that is a warning."""

    plan: FilmPlan
    said: tuple[str, ...]
    warnings: tuple[str, ...]


def choose_plan(
    frames: int,
    seconds: float = 0.0,
    sigmas: Sequence[float] | None = None,
    preset: str = CUSTOM,
    fps_float: float | None = None,
    **numbers: Any,
) -> Choice:
    """The plan of a film with these numbers; the others are named as in `FilmPlan`.

    seconds: above 0, instead of frames. fps_float: instead of fps, rounded. preset: sets its
    numbers, whatever was given for them. Raises ValueError as `FilmPlan` does.
    """
    said: list[str] = []
    warnings: list[str] = []
    if sigmas is not None:
        numbers["sigmas"] = tuple(custom_schedule(sigmas).sigmas.tolist())
    if preset in PRESETS:
        taken, warnings = _take_preset(preset, numbers)
        numbers |= taken
        said = [describe_preset(preset, taken), *warnings]
    if fps_float is not None:
        numbers["fps"] = math.floor(fps_float + 0.5)
        if fps_float != numbers["fps"]:
            said.append(f"fps_float {fps_float:g} is rounded to {numbers['fps']} fps")
    if seconds:
        frames = frames_of_seconds(seconds, numbers["fps"])
    return Choice(FilmPlan(num_frames=frames, **numbers), tuple(said), tuple(warnings))


def _take_preset(name: str, numbers: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A preset's numbers, with an ar_step that slides where asked to; and warnings."""
    preset, warnings = PRESETS[name], []
    taken = preset.numbers(numbers["height"] > numbers["width"])
    if numbers.get("sliding"):
        steps = len(numbers["sigmas"]) - 1 if "sigmas" in numbers else preset.steps
        taken["ar_step"] = preset.sliding_ar_step(steps)
        if taken["ar_step"] != preset.ar_step:
            warnings = [describe_sliding(name, int(taken["ar_step"]), steps)]
    return taken, warnings
