"""From a structured description to one caption, as SkyReels-V2's training captions were made.

T2V captions tell all of a shot. I2V captions tell what happens, because the picture is given.
Fields are cleaned as published, a language model makes sentences of them, and the camera's motion
follows at the end. Without a language model the fields are joined as they are.
Source: SkyworkAI/SkyReels-V2 skycaptioner_v1, caption fusion.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping
from typing import Any

from ..rules import require_choice
from .ask import ask
from .description import Description, Subject
from .engine import Engine, Message, OnToken, Sampling
from .prompts import read_prompt

MANNERS = ("t2v", "i2v")
NO_SUBJECTS = "-"  # what stands in training captions of shots in which no one does anything
DROPPED = 0.1  # of the fields that training left out at random
SAMPLING = Sampling(max_tokens=512, temperature=0.1, stop=("\n\n",))
WITH_EXPRESSION = ("Human", "Animal")
# Types that are no name for anything.
NAMELESS = ("", "Other")
VIEWS = ("shot_type", "shot_angle", "shot_position")
SHOTS = {
    "long_shot": "long shot",
    "full_shot": "full shot",
    "medium_shot": "medium shot",
    "close_up": "close-up",
    "extreme_close_up": "extreme close-up",
    "eye_level": "at eye level",
    "high_angle": "from a high angle",
    "low_angle": "from a low angle",
    "front_view": "seen from the front",
    "back_view": "seen from behind",
    "side_view": "seen from the side",
    "over_the_shoulder": "over the shoulder",
    "overhead_view": "seen from overhead",
    "point_of_view": "as a point of view",
    "aerial_view": "seen from the air",
    "overlooking_view": "overlooking the scene",
}


def clean(description: Description, manner: str, drop_seed: int | None = None) -> dict[str, Any]:
    """The fields that a caption of this manner is made of, as published.

    Expressions are of humans and animals only. A sub type becomes the name. i2v keeps names,
    actions and expressions of the subjects that have one of the last two. With `drop_seed`, one in
    ten appearances, positions and (t2v) lightings is left out at random, as in training.
    """
    require_choice("manner", manner, MANNERS)
    draw = random.Random(drop_seed)

    def drop() -> bool:
        return drop_seed is not None and draw.random() > 1 - DROPPED

    subjects = []
    for subject in description.subjects:
        no_appearance, no_position = drop(), drop()
        fields = _subject_fields(subject)
        if no_appearance or manner == "i2v":
            del fields["appearance"]
        if no_position or manner == "i2v":
            del fields["position"]
        if manner == "t2v" or fields["action"] or fields["expression"]:
            subjects.append(fields)
    cleaned: dict[str, Any] = {"num_subjects": len(subjects), "subjects": subjects}
    if manner == "t2v":
        for name in (*VIEWS, "environment", "lighting"):
            cleaned[name] = getattr(description, name)
        if drop():
            del cleaned["lighting"]
    return cleaned


def _subject_fields(subject: Subject) -> dict[str, str]:
    kind = subject.TYPES
    has_face = kind.type in WITH_EXPRESSION and (kind.type, kind.sub_type) != ("Human", "Accessory")
    fields = {
        "appearance": subject.appearance,
        "action": subject.action,
        "expression": subject.expression if has_face else "",
        "position": subject.position,
    }
    if kind.sub_type:
        fields["name"] = kind.sub_type
    return fields


def motion_sentence(description: Description) -> str:
    """The camera's motion as a sentence, or nothing.

    The published code makes all its other letters small, those of names as well, and may end it
    with two points.
    """
    return _sentence(description.camera_motion)


def fuse(
    description: Description,
    manner: str,
    engine: Engine | None = None,
    on_token: OnToken = lambda piece: None,
    seed: int = 0,
    drop_seed: int | None = None,
) -> str:
    """The caption of a description. Without an engine its fields are joined as they are.

    Without subjects it is "-" and the camera's motion, as published; a t2v caption still tells the
    shot, the place and the light, where that code loses them. Raises what `ask` raises.
    """
    cleaned = clean(description, manner, drop_seed)
    joined = _join(cleaned)
    if not joined:
        text = NO_SUBJECTS
    elif engine is None:
        text = joined
    else:
        messages = (
            Message("system", read_prompt(f"fuse_{manner}")),
            Message("user", json.dumps(cleaned, indent=4, ensure_ascii=False)),
        )
        sampling = dataclasses.replace(SAMPLING, seed=seed)
        text = " ".join(ask(engine, messages, sampling, on_token).text.split())
    return f"{text} {motion_sentence(description)}".strip()


def _join(cleaned: dict[str, Any]) -> str:
    """The fields as sentences, in the published order."""
    sentences = [_join_views(cleaned)]
    for subject in cleaned["subjects"]:
        sentences += _tell(subject)
    sentences += [cleaned.get("environment", ""), cleaned.get("lighting", "")]
    return " ".join(filter(None, map(_sentence, sentences)))


def _join_views(fields: Mapping[str, Any]) -> str:
    said = (fields.get(name, "") for name in VIEWS)
    return ", ".join(SHOTS[one] for one in said if one in SHOTS)


def tell_shot(description: Description) -> str:
    """The shot's size, the camera's angle and its side, in words: long shot, at eye level."""
    return _join_views(description.model_dump())


def tell_subjects(description: Description) -> list[str]:
    """A line for each subject, the main ones first."""
    ordered = sorted(description.subjects, key=lambda subject: not subject.is_main_subject)
    return [" ".join(map(_sentence, _tell(_subject_fields(one)))) for one in ordered]


def _tell(subject: dict[str, str]) -> list[str]:
    """A subject's sentences. Its action names it; where there is none, its name begins."""
    said = [subject.get(key, "") for key in ("action", "appearance", "expression", "position")]
    said = [text for text in said if text]
    name = subject.get("name", "")
    if not subject["action"] and name not in NAMELESS:
        said[:1] = [f"{name}: {said[0]}" if said else name]
    return said


def _sentence(text: str) -> str:
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?\u3002" else ".")
