"""From a film's captions to a storyboard: the text that SkyReels-V2 Storyboard (Text) reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ..plan import storyboard
from ..plan.storyboard import MAX_LENGTH, TimedPrompt
from ..rules import refusal
from .ask import UnansweredError
from .captioning import Caption, shorten
from .clips import Clip
from .cuts import Span
from .description import Description

LONGEST_CAPTION = 2400  # characters: about the 512 tokens that a prompt may have
SHOWN = 60  # characters of a text that cannot be read
MARK = 30  # characters that a shot's mark takes at most
# What could be read as the mark of another shot.
_SLASH = re.compile(r"\s*/(?=\s*-?[\d.,])")
_ADDRESS = re.compile(r"https?://\S+")
_ANY_SLASH = re.compile(r"\s+/")


def write_storyboard(clip: Clip, spans: Sequence[Span], captions: Sequence[str]) -> str:
    """One line for each shot: the second at which it begins, 'cut' where it does, its caption.

    Long captions end after a sentence, so that each is a legal prompt and all a legal text.
    """
    room = min(LONGEST_CAPTION, MAX_LENGTH // len(spans) - MARK)
    shots = [
        TimedPrompt(
            shorten(_without_marks(caption), room),
            clip.second(span.end) - clip.second(span.first),
            span.cut and number > 0,
        )
        for number, (span, caption) in enumerate(zip(spans, captions, strict=True))
    ]
    return storyboard.write_storyboard(shots)


def _without_marks(caption: str) -> str:
    return _ANY_SLASH.sub(",", _SLASH.sub(",", caption))


def write_shots(
    clip: Clip,
    spans: Sequence[Span],
    captions: Sequence[Caption],
    failure: UnansweredError | None = None,
) -> str:
    """All that is known of the shots, as JSON, the raw answers among it.

    failure: why the first shot without a caption has none. Addresses are left out.
    """
    shots: list[dict[str, Any]] = [
        {
            **_times(clip, span),
            "t2v": one.t2v,
            "i2v": one.i2v,
            "description": one.description.model_dump(),
            "notes": list(map(_without_addresses, one.notes)),
            "raw": one.raw,
        }
        for span, one in zip(spans, captions, strict=False)
    ]
    if failure is not None:
        times = _times(clip, spans[len(captions)])
        shots.append({**times, "error": _without_addresses(str(failure)), "raw": failure.raw})
    return json.dumps(shots, indent=4, ensure_ascii=False)


def _without_addresses(text: str) -> str:
    """A text that may be saved with a workflow, in which no server's address has a place."""
    return _ADDRESS.sub("the endpoint", text)


def _times(clip: Clip, span: Span) -> dict[str, Any]:
    seconds = [round(clip.second(index), 3) for index in (span.first, span.end)]
    return {"start": seconds[0], "end": seconds[1], "cut": span.cut}


def read_shots(text: str, clip: Clip, spans: Sequence[Span]) -> dict[Span, Caption]:
    """The captions in what `write_shots` wrote, of those spans that begin and end as its shots.

    Raises ValueError for what is no such text.
    """
    try:
        shots = json.loads(text) if text.strip() else []
        told = {(one["start"], one["end"]): one for one in shots if "error" not in one}
        found = {}
        for span in spans:
            times = _times(clip, span)
            one = told.get((times["start"], times["end"]))
            if one is not None:
                found[span] = _read_shot(one)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        begin = text if len(text) <= SHOWN else f"{text[:SHOWN]}\u2026"
        rule = "the text of an earlier run's shots, or empty"
        raise refusal("known_shots", begin, rule) from error
    return found


def _read_shot(shot: Any) -> Caption:
    t2v, i2v, raw = (str(shot[name]) for name in ("t2v", "i2v", "raw"))
    description = Description.model_validate(shot["description"])
    return Caption(description, t2v, i2v, raw, tuple(map(str, shot["notes"])))
