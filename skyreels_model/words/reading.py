"""What a model wrote, read as a description of a shot: JSON with all that goes wrong in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from .ask import NoAnswerError
from .description import FIELDS, Description

REPAIR = "pip install json-repair"
LONGEST_ANSWER = 20_000  # characters; no engine is asked for more, and repairs take their time
SHOWN = 300  # characters of an answer that cannot be read
MOST_STARTS = 50  # places at which an object may begin
_START = re.compile(r"\{")
_OURS = re.compile(rf"\{{\s*[\"'\u201c]?(?:{'|'.join(FIELDS)})\b")


def read_description(text: str) -> Description:
    """The description in an answer: in code fences, in prose, with broken or unfinished JSON.

    Broken JSON is repaired by json_repair. Raises NoAnswerError, which has the raw text, where
    there is no description, or where it is broken and json_repair is not installed.
    """
    raw, text = text, text[:LONGEST_ANSWER]
    for found in _whole_objects(text):
        description = _validate(found)
        if description is not None:
            return description
    start = _OURS.search(text) or _START.search(text)
    if start is None:
        raise _unreadable("has no JSON in it", raw)
    description = _validate(_repair(text, start.start()))
    if description is None:
        raise _unreadable("has JSON without any field of a description", raw)
    return description


def _whole_objects(text: str) -> Iterator[Any]:
    """Objects of sound JSON in the text, the outer ones before those in them."""
    decoder = json.JSONDecoder()
    end = 0
    for number, start in enumerate(_START.finditer(text)):
        if number == MOST_STARTS:
            return
        if start.start() < end:
            continue
        try:
            found, end = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        yield found


def _repair(text: str, start: int) -> Any:
    try:
        import json_repair
    except ImportError:
        raise _unreadable(f"is broken JSON; to have such repaired: {REPAIR}", text) from None
    try:
        return json_repair.loads(text[start:])
    except (ValueError, RecursionError):
        return None


def _validate(found: Any) -> Description | None:
    """The description that a JSON value is or holds; None where it says nothing."""
    if isinstance(found, list):
        found = next((one for one in found if isinstance(one, dict)), None)
    if not isinstance(found, dict):
        return None
    found = {str(key).strip(): value for key, value in found.items()}
    if not set(FIELDS) & set(found):
        inner = [one for one in found.values() if isinstance(one, (dict, list))]
        return _validate(inner[0]) if len(inner) == 1 else None
    try:
        description = Description.model_validate(found)
    except (ValidationError, RecursionError):
        return None
    return None if description.says_nothing else description


def _unreadable(flaw: str, text: str) -> NoAnswerError:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}\u2026"
    return NoAnswerError(f"the captioner's answer {flaw}. It begins: {shown}", text)
