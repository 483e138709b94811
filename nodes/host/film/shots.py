"""A storyboard's shots with their encoded prompts, as a film's plan sees them."""

from __future__ import annotations

import dataclasses
import functools
import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
import comfy.sd

from ....skyreels_model.plan.bounds import BOUNDS, SHORTEST
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.plan.shots import Shot
from ....skyreels_model.plan.storyboard import TimedPrompt, parse_storyboard, shot_lengths
from ....skyreels_model.rules import refuse, require_number, require_whole
from .. import files
from ..sockets import lora as host_lora
from ..sockets.clip import encode_prompt

LOG = logging.getLogger("skyreels_v2")
NO_LORA = "none"


@dataclass(frozen=True)
class ShotLora:
    """A file of models/loras, and how strongly it acts in a shot."""

    name: str
    strength: float


@dataclass(frozen=True)
class FilmShot:
    """A shot; `seed` and `model` None are the sampler's. ease: frames. lora: on that model."""

    positive: list[Any]
    seconds: float
    cut: bool
    ease: int
    seed: int | None
    model: comfy.model_patcher.ModelPatcher | None
    lora: ShotLora | None = None


def add_shot(
    previous: tuple[FilmShot, ...],
    clip: comfy.sd.CLIP,
    prompt: str,
    seconds: float,
    cut: bool,
    ease: int,
    seed: int | None,
    model: comfy.model_patcher.ModelPatcher | None,
    lora: ShotLora | None = None,
    name: str = "prompt",
) -> tuple[FilmShot, ...]:
    """The shots before and one more; raises ValueError for a shot without length.

    name: of the input that the prompt is from, for messages.
    """
    require_number("seconds", seconds, SHORTEST, BOUNDS["seconds"][1])
    require_whole("ease", ease, *BOUNDS["ease"])
    positive = encode_prompt(clip, name, prompt)
    return (*previous, FilmShot(positive, seconds, cut, ease, seed, model, lora))


def parse_shots(
    clip: comfy.sd.CLIP, text: str, seconds: float, ease: int, lora_name: str = NO_LORA
) -> tuple[FilmShot, ...]:
    """The shots of a text such as `0s: a prompt / 6s lora 0.5: another`.

    lora_name: the LoRA whose strength a shot may say. It is 1 where it does not.
    """
    timed = parse_storyboard(text, seconds)
    loras = [_shot_lora(number, one, lora_name) for number, one in enumerate(timed, 1)]
    shots: tuple[FilmShot, ...] = ()
    for number, (one, lora) in enumerate(zip(timed, loras, strict=True), 1):
        name = f"text, shot {number}"
        numbers = one.seconds, one.cut, ease if one.ease is None else one.ease
        shots = add_shot(shots, clip, one.prompt, *numbers, one.seed, None, lora, name)
    return shots


def _shot_lora(number: int, shot: TimedPrompt, lora_name: str) -> ShotLora | None:
    if lora_name == NO_LORA:
        if shot.lora is None:
            return None
        raise refuse(
            f"lora_name is {NO_LORA}, and text has lora {shot.lora:g} in shot {number}: choose the "
            f"LoRA whose strength that is, or take the word out",
            "lora_name",
        )
    strength = 1.0 if shot.lora is None else shot.lora
    return ShotLora(lora_name, strength) if strength else None


def put_loras(
    shots: tuple[FilmShot, ...], model: comfy.model_patcher.ModelPatcher
) -> tuple[FilmShot, ...]:
    """The shots with their LoRAs on their models, each file read once and each strength put once.

    model: of the shots that have none.
    """
    read = functools.cache(_read_lora)

    @functools.cache
    def put(of: comfy.model_patcher.ModelPatcher, lora: ShotLora) -> Any:
        return read(of, lora.name).put_on(of, lora.strength)

    return tuple(
        dataclasses.replace(shot, model=put(shot.model or model, shot.lora)) if shot.lora else shot
        for shot in shots
    )


def _read_lora(model: comfy.model_patcher.ModelPatcher, name: str) -> host_lora.HostLora:
    with files.name_errors("lora_name", name):
        lora = host_lora.read_lora(model, files.find_file("loras", name))
    LOG.info("%s: %s", name, lora.report)
    return lora


def plan_shots(plan: FilmPlan, shots: tuple[FilmShot, ...]) -> FilmPlan:
    """The plan with the shots' lengths; each begins at the frame nearest to its second."""
    lengths = shot_lengths([shot.seconds for shot in shots], plan.fps)
    parts = [Shot(n, shot.cut, shot.ease) for n, shot in zip(lengths, shots, strict=True)]
    return dataclasses.replace(plan, num_frames=sum(lengths), shots=tuple(parts))
