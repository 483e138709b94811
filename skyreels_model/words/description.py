"""The structured description of a shot, with the fields that SkyCaptioner-V1 was trained to fill.

Source: SkyworkAI/SkyReels-V2 skycaptioner_v1. Models do not keep to it strictly: what they mean is
read, and what comes out is always one of the published words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..text_encoder.tokenizer import clean_text

LONGEST_FIELD = 3000  # characters
MOST_SUBJECTS = 30
_NOTHING = {"none", "n/a", "na", "null", "nil", "empty", "not applicable", "-", "..."}

ShotType = Literal[
    "", "long_shot", "full_shot", "medium_shot", "close_up", "extreme_close_up", "other"
]
ShotAngle = Literal["", "eye_level", "high_angle", "low_angle", "other"]
ShotPosition = Literal[
    "",
    "front_view",
    "back_view",
    "side_view",
    "over_the_shoulder",
    "overhead_view",
    "point_of_view",
    "aerial_view",
    "overlooking_view",
    "other",
]
# What other models call the same.
_SYNONYMS = {
    "wide": "long_shot",
    "wide_shot": "long_shot",
    "extreme_long_shot": "long_shot",
    "establishing_shot": "long_shot",
    "medium_long_shot": "full_shot",
    "medium_close_up": "medium_shot",
    "big_close_up": "extreme_close_up",
    "close_shot": "close_up",
    "straight_on": "eye_level",
    "frontal_view": "front_view",
    "rear_view": "back_view",
    "profile_view": "side_view",
    "top_down_view": "overhead_view",
    "birds_eye_view": "aerial_view",
    "drone_view": "aerial_view",
    "pov": "point_of_view",
}


def _plain(value: Any) -> str:
    """Any JSON value as one line of clean text."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(filter(None, map(_plain, value)))
    text = clean_text(str(value)[:LONGEST_FIELD])
    return "" if text.lower().rstrip(".") in _NOTHING else text


def _one_of(options: Any) -> BeforeValidator:
    """Reads one of the options as a person would; what is none of them is "other"."""
    known = get_args(options)

    def read(value: Any) -> str:
        word = "_".join(_plain(value).lower().replace("-", " ").replace("'", "").split())
        for form in (word, f"{word}_shot", f"{word}_view", f"{word}_angle"):
            form = _SYNONYMS.get(form, form)
            for candidate in (form, form.removesuffix("_shot"), form.removesuffix("_view")):
                if candidate in known:
                    return candidate
        return "other"

    return BeforeValidator(read)


def _truth(value: Any) -> bool:
    return value is True or str(value).strip().lower() in ("true", "yes", "1", "1.0")


def _kinds(value: Any) -> Any:
    """A model may name the type alone."""
    return value if isinstance(value, Mapping) else {"type": value}


def _subjects(value: Any) -> list[Any]:
    """A list of those that say something, each once: a model in a loop repeats them.

    The last one may be broken off: it goes where it is the beginning of another.
    """
    found: list[dict[str, Any]] = []
    for one in value if isinstance(value, list) else [value]:
        subject = dict(one) if isinstance(one, Mapping) else {"appearance": one}
        if subject not in found and _plain([v for k, v in subject.items() if k != "TYPES"]):
            found.append(subject)
    if any(_begins(found[-1], other) for other in found[:-1]):
        del found[-1]
    return found[:MOST_SUBJECTS]


def _begins(part: Mapping[str, Any], whole: Mapping[str, Any]) -> bool:
    return all(_plain(whole.get(key)).startswith(_plain(value)) for key, value in part.items())


Text = Annotated[str, BeforeValidator(_plain)]


class _Fields(BaseModel):
    model_config = ConfigDict(
        extra="ignore", frozen=True, json_schema_serialization_defaults_required=True
    )


class Kind(_Fields):
    """What a subject is: such as Human and Woman, Vehicles and Ship, Scenery and Mountain."""

    type: Text = ""
    sub_type: Text = ""


class Subject(_Fields):
    """One who or what is seen. expression: of humans and animals only."""

    TYPES: Annotated[Kind, BeforeValidator(_kinds)] = Kind()
    appearance: Text = ""
    action: Text = ""
    expression: Text = ""
    position: Text = ""
    is_main_subject: Annotated[bool, BeforeValidator(_truth)] = False


class Description(_Fields):
    """A shot. Empty fields are not known or not there."""

    subjects: Annotated[list[Subject], BeforeValidator(_subjects)] = Field(default_factory=list)
    shot_type: Annotated[ShotType, _one_of(ShotType)] = ""
    shot_angle: Annotated[ShotAngle, _one_of(ShotAngle)] = ""
    shot_position: Annotated[ShotPosition, _one_of(ShotPosition)] = ""
    camera_motion: Text = ""
    environment: Text = ""
    lighting: Text = ""

    def to_json(self) -> str:
        """As the published captioner writes it, on indented lines."""
        return json.dumps(self.model_dump(), indent=4, ensure_ascii=False)

    @property
    def says_nothing(self) -> bool:
        return self == Description()


FIELDS = tuple(Description.model_fields)


def json_schema() -> dict[str, Any]:
    """The JSON schema of a description in which every field is there, for engines that keep to it.

    Options have no empty word: a model that answers chooses one. Nothing else is allowed, and there
    are no defaults, as strict servers want it.
    """
    schema = Description.model_json_schema(mode="serialization")
    for name in ("shot_type", "shot_angle", "shot_position"):
        options = schema["properties"][name]
        options["enum"] = [word for word in options["enum"] if word]
    found: dict[str, Any] = _make_strict(schema)
    return found


def _make_strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_make_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: _make_strict(one) for key, one in schema.items() if key not in ("default", "title")
    }
    return {**made, "additionalProperties": False} if "properties" in made else made
