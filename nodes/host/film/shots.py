"""A storyboard's shots with their encoded prompts, as a film's plan sees them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.sd

from ....skyreels_model.plan.bounds import BOUNDS, SHORTEST
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.plan.shots import Shot
from ....skyreels_model.plan.storyboard import parse_storyboard, shot_lengths
from ....skyreels_model.rules import require_number, require_whole
from ..sockets.clip import encode_prompt


@dataclass(frozen=True)
class FilmShot:
    """A shot; `seed` and `model` None are the sampler's. ease: frames."""

    positive: list[Any]
    seconds: float
    cut: bool
    ease: int
    seed: int | None
    model: comfy.model_patcher.ModelPatcher | None


def add_shot(
    previous: tuple[FilmShot, ...],
    clip: comfy.sd.CLIP,
    prompt: str,
    seconds: float,
    cut: bool,
    ease: int,
    seed: int | None,
    model: comfy.model_patcher.ModelPatcher | None,
    name: str = "prompt",
) -> tuple[FilmShot, ...]:
    """The shots before and one more; raises ValueError for a shot without length.

    name: of the input that the prompt is from, for messages.
    """
    require_number("seconds", seconds, SHORTEST, BOUNDS["seconds"][1])
    require_whole("ease", ease, *BOUNDS["ease"])
    positive = encode_prompt(clip, name, prompt)
    return (*previous, FilmShot(positive, seconds, cut, ease, seed, model))


def parse_shots(clip: comfy.sd.CLIP, text: str, seconds: float, ease: int) -> tuple[FilmShot, ...]:
    """The shots of a text such as `0s: a prompt / 6s: another`."""
    shots: tuple[FilmShot, ...] = ()
    for number, timed in enumerate(parse_storyboard(text, seconds), 1):
        name = f"text, shot {number}"
        numbers = timed.seconds, timed.cut, ease if timed.ease is None else timed.ease
        shots = add_shot(shots, clip, timed.prompt, *numbers, timed.seed, None, name)
    return shots


def plan_shots(plan: FilmPlan, shots: tuple[FilmShot, ...]) -> FilmPlan:
    """The plan with the shots' lengths; each begins at the frame nearest to its second."""
    lengths = shot_lengths([shot.seconds for shot in shots], plan.fps)
    parts = [Shot(n, shot.cut, shot.ease) for n, shot in zip(lengths, shots, strict=True)]
    return dataclasses.replace(plan, num_frames=sum(lengths), shots=tuple(parts))
