"""From a film's captions to a storyboard: the text that SkyReels-V2 Storyboard (Text) reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ..plan.storyboard import MAX_LENGTH
from .captioning import Caption, shorten
from .clips import Clip
from .cuts import Span

LONGEST_CAPTION = 2400  # characters: about the 512 tokens that a prompt may have
MARK = 30  # characters that a shot's mark takes at most
# What could be read as the mark of another shot.
_SLASH = re.compile(r"\s*/(?=\s*-?[\d.,])")
_ANY_SLASH = re.compile(r"\s+/")


def write_storyboard(clip: Clip, spans: Sequence[Span], captions: Sequence[str]) -> str:
    """One line for each shot: the second at which it begins, 'cut' where it does, its caption.

    Long captions end after a sentence, so that each is a legal prompt and all a legal text.
    """
    room = min(LONGEST_CAPTION, MAX_LENGTH // len(spans) - MARK)
    lines = []
    for number, (span, caption) in enumerate(zip(spans, captions, strict=True)):
        second = f"{clip.second(span.first):.3f}".rstrip("0").rstrip(".")
        cut = " cut" if span.cut and number else ""
        lines.append(f"{second}s{cut}: {shorten(_without_marks(caption), room)}")
    return "\n".join(lines)


def _without_marks(caption: str) -> str:
    return _ANY_SLASH.sub(",", _SLASH.sub(",", caption))


def write_shots(clip: Clip, spans: Sequence[Span], captions: Sequence[Caption]) -> str:
    """All that is known of the shots, as JSON, the raw answers among it."""
    shots = [
        {
            "start": round(clip.second(span.first), 3),
            "end": round(clip.second(span.end), 3),
            "cut": span.cut,
            "t2v": one.t2v,
            "i2v": one.i2v,
            "description": one.description.model_dump(),
            "notes": list(one.notes),
            "raw": one.raw,
        }
        for span, one in zip(spans, captions, strict=True)
    ]
    return json.dumps(shots, indent=4, ensure_ascii=False)
