"""The plan that the page draws while its numbers are turned: the same that the nodes make."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from ..skyreels_model.budget import describe_model
from ..skyreels_model.plan.bounds import BOUNDS, SHORTEST
from ..skyreels_model.plan.choose import Choice, choose_plan
from ..skyreels_model.plan.film_plan import FilmPlan
from ..skyreels_model.plan.given import Given
from ..skyreels_model.plan.outline import outline_plan
from ..skyreels_model.plan.shots import Shot
from ..skyreels_model.plan.storyboard import TimedPrompt, parse_storyboard, shot_lengths
from ..skyreels_model.plan.summary import describe_plan, describe_shortly
from ..skyreels_model.rules import read_refusal, refuse, require_flag, require_number
from .host.checked import check, describe_value
from .host.film.given import parse_key_seconds, require_agreement
from .host.routes import Nonsense
from .host.sockets.memory import card
from .schedule import SkyReelsV2Schedule, describe_need

MAX_SHOTS = 2000
MAX_UNKNOWN = 3
# A clip whose length the page does not know counts as long enough.
LONG_ENOUGH = 10**9


def answer_plan(content: Any) -> dict[str, Any]:
    """What the page draws for `{"schedule": …, "storyboard": …, "frames": …, "model": …}`.

    schedule: its inputs. storyboard: None, `{"text", "seconds", "ease"}`, or `{"shots": [{
    "seconds", "cut", "ease"}, …]}`. frames: None where no sampler is connected, else
    `{"connected": [inputs], "key_seconds", "loop"}`. model: a file's name. Where the plan is not
    legal, or a graph of another version has values of another kind, it is `{"refused": {"message",
    "input", "nearest"}}`. Raises Nonsense for anything else.
    """
    wish = _object("the body", content, {"schedule", "storyboard", "frames", "model"})
    try:
        numbers, unknown = _schedule(wish.get("schedule"))
        choice = choose_plan(**numbers)
        choice = replace(choice, warnings=(*choice.warnings, *unknown))
        plan = _with_shots(choice.plan, wish.get("storyboard"))
        plan = _with_frames(plan, wish.get("frames"))
        return _answer(plan, choice, str(wish.get("model") or ""))
    except Nonsense:
        raise
    except ValueError as error:
        name, nearest = read_refusal(error)
        return {"refused": {"message": str(error), "input": name, "nearest": nearest}}


def _answer(plan: FilmPlan, choice: Choice, model: str) -> dict[str, Any]:
    shown = plan.shown_latents(plan.window_at(0))
    return {
        "plan": outline_plan(plan),
        "title": describe_shortly(plan),
        "memory": describe_model(model, shown, plan.width, plan.height, card()),
        "warnings": list(choice.warnings),
        "summary": "\n".join([*choice.said, describe_plan(plan), describe_need(plan)]),
    }


def _object(name: str, value: Any, keys: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Nonsense(f"{name} is {type(value).__name__}; it must be an object")
    unknown = sorted(value.keys() - keys)
    if unknown:
        some = ", ".join(repr(key[:40]) for key in unknown[:3])
        raise Nonsense(f"{name} has {some}; it may have: {', '.join(sorted(keys))}")
    return value


def _schedule(given: Any) -> tuple[dict[str, Any], list[str]]:
    """The node's inputs, each as its schema declares it, and what is to be said of others.

    What is not given has its default.
    """
    declared = {one.id: one for one in SkyReelsV2Schedule.define_schema().inputs}
    del declared["sigmas"]  # a tensor, which only a run makes
    if not isinstance(given, dict):
        raise Nonsense(f"schedule is {type(given).__name__}; it must be an object")
    values = {name: value for name, value in given.items() if name in declared}
    for name, value in values.items():
        try:
            check(declared[name], value)
        except ValueError as error:
            if read_refusal(error)[0]:
                raise
            raise refuse(str(error), name, declared[name].default) from error
    unknown = [
        f"{name[:40]} is no input of SkyReels-V2 Schedule in this version; drawn without it"
        for name in [name for name in given if name not in declared][:MAX_UNKNOWN]
    ]
    defaults = {name: one.default for name, one in declared.items() if name != "fps_float"}
    return {**defaults, **values}, unknown


def _with_shots(plan: FilmPlan, storyboard: Any) -> FilmPlan:
    if storyboard is None:
        return plan
    given = _object("storyboard", storyboard, {"text", "seconds", "ease", "shots"})
    shots, ease = _timed(given), given.get("ease", 0)
    if not shots:
        return plan
    lengths = shot_lengths([shot.seconds for shot in shots], plan.fps)
    parts = tuple(
        Shot(frames, shot.cut, ease if shot.ease is None else shot.ease)
        for frames, shot in zip(lengths, shots, strict=True)
    )
    return replace(plan, num_frames=sum(lengths), shots=parts)


def _timed(given: Mapping[str, Any]) -> list[TimedPrompt]:
    """The shots of a storyboard, of one text or of several nodes."""
    if "text" in given:
        return parse_storyboard(_text(given), given.get("seconds"))  # type: ignore[arg-type]
    listed = given.get("shots")
    if not isinstance(listed, list) or len(listed) > MAX_SHOTS:
        raise Nonsense(f"storyboard's shots must be a list of at most {MAX_SHOTS}")
    shots = []
    for one in listed:
        shot = _object("a shot", one, {"seconds", "cut", "ease"})
        seconds, cut = shot.get("seconds"), shot.get("cut", False)
        require_number("seconds", seconds, SHORTEST, BOUNDS["seconds"][1])
        require_flag("cut", cut)
        shots.append(TimedPrompt("", shot["seconds"], cut, shot.get("ease", 0)))
    return shots


def _text(given: Mapping[str, Any]) -> str:
    text = given["text"]
    if not isinstance(text, str):
        raise refuse(f"text is {describe_value(text)}; it must be text", "text")
    return text


def answer_storyboard(content: Any) -> dict[str, Any]:
    """The rows of a storyboard's editor for `{"text", "seconds"}`: `{"shots": [{"prompt",
    "seconds", "cut", "ease", "seed", "lora"}, …]}`; seed as text, because a page rounds long
    numbers.

    A text that is none is `{"refused": {"message"}}`. Raises Nonsense for anything else.
    """
    given = _object("the body", content, {"text", "seconds"})
    if "text" not in given:
        raise Nonsense("the body has no text")
    try:
        shots = _timed(given)
    except Nonsense:
        raise
    except ValueError as error:
        return {"refused": {"message": str(error)}}
    if len(shots) > MAX_SHOTS:
        return {"refused": {"message": f"the editor has room for {MAX_SHOTS} shots"}}
    return {"shots": [_row(shot) for shot in shots]}


def _row(shot: TimedPrompt) -> dict[str, Any]:
    return {**asdict(shot), "seed": "" if shot.seed is None else str(shot.seed)}


def _with_frames(plan: FilmPlan, frames: Any) -> FilmPlan:
    """The plan with places for what is connected to SkyReels-V2 Frames."""
    if frames is None:
        return plan
    given = _object("frames", frames, {"connected", "key_seconds", "loop"})
    connected, seconds = given.get("connected", []), given.get("key_seconds", "")
    loop = given.get("loop", False)
    if not isinstance(connected, list) or not all(isinstance(name, str) for name in connected):
        raise Nonsense("frames has a list of names that are connected")
    if not isinstance(seconds, str):
        raise refuse(f"key_seconds is {describe_value(seconds)}; it must be text", "key_seconds")
    require_flag("loop", loop)
    if not connected and not loop:
        return plan.fit(Given())
    require_agreement(dict.fromkeys(connected, True), loop)
    keys = parse_key_seconds(seconds[:10_000], plan.fps) if "key_images" in connected else []
    given_names = set(connected)
    return plan.fit(
        Given(
            start=int("start_image" in connected),
            video=LONG_ENOUGH * bool({"video", "video_file"} & given_names),
            key_frames=tuple(keys),
            end="end_image" in connected or loop,
            following_frames=LONG_ENOUGH * bool({"prepend_to", "prepend_to_file"} & given_names),
            source=LONG_ENOUGH * ("source" in connected),
        )
    )
