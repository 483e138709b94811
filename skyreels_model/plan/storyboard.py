"""A storyboard as one text: `0s: a prompt / 6s ease 12: another / 9s cut seed 7: a third`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from ..rules import refusal, require_number
from .bounds import BOUNDS

MAX_LENGTH = 1_000_000  # characters: some 500 shots with the longest prompts
EXAMPLE = "'0s: a street at dawn / 6s: rain sets in / 9s cut: inside a café'"
MOST_SEED = 2**64 - 1
_WORDS = r"((?:\s+(?:cut|ease\s+\d+|seed\s+\d+|lora\s+-?\d+(?:\.\d+)?))*)"
# Marks stand after the end of a line, or after a slash; both begin with a class of characters, so
# that a long text is walked over quickly. What was meant as a mark: another unit or none, a comma,
# a sign, a slash without a space before.
_NEARLY = re.compile(
    r"[\n/](?:(?<!\d/)\s*-?[\d.,]*\d\s*s(?:ec(?:ond)?s?)?|(?<!\S/)\s*-?[\d.,]*\d)"
    r"(?:\s+(?:cut|(?:ease|seed|lora)(?:[\s=]+[-+]?[\d.,]+%?)?))*\s*:(?!\d)",
    re.IGNORECASE,
)
_MARK = re.compile(rf"[\n/](?<!\S/)\s*(\d+(?:\.\d+)?)\s*s{_WORDS}\s*:", re.IGNORECASE)


@dataclass(frozen=True)
class TimedPrompt:
    """A shot: its prompt, its length in seconds, and whether it begins afresh.

    ease, seed, lora: its own cross-fade in frames, its own seed, and the strength of a LoRA, where
    the text has them.
    """

    prompt: str
    seconds: float
    cut: bool
    ease: int | None = None
    seed: int | None = None
    lora: float | None = None


def parse_storyboard(text: str, seconds: float) -> list[TimedPrompt]:
    """The shots of a text in which each prompt is marked with the second at which it begins.

    Marks stand at the beginning of a line or after a slash. Before its colon a mark may have the
    words cut, ease and seed, the last two with a whole number, and lora with any number. `seconds`
    is the film's length.
    Raises ValueError where the text does not begin with a mark, where something in it is nearly a
    mark, where times do not go forward, or where it is longer than a million characters.
    """
    require_number("seconds", seconds, *BOUNDS["seconds"])
    if len(text) > MAX_LENGTH:
        raise refusal("length of text", len(text), f"at most {MAX_LENGTH} characters", MAX_LENGTH)
    text = _lead_in(_squeeze_spaces(text))
    marks = list(_MARK.finditer(text))
    if not marks or marks[0].start():
        raise ValueError(
            f"text begins with {text.strip()[:40]!r}; each prompt is marked with the second at "
            f"which it begins, such as {EXAMPLE}"
        )
    ends_of_marks = {mark.end() for mark in marks}
    for nearly in _NEARLY.finditer(text):
        if nearly.end() not in ends_of_marks:
            raise ValueError(
                f"text has {nearly[0].strip()[:40]!r}; a mark is a second (with a point where it "
                f"has a fraction), an s, and a colon, at the beginning of a line or after a slash "
                f"with a space before it, such as {EXAMPLE}"
            )
    starts = [float(mark[1]) for mark in marks]
    if starts[0] != 0:
        raise refusal("text's first second", starts[0], "0: a film begins with its first shot", 0)
    ends = [*starts[1:], seconds]
    shots = []
    for number, (mark, start, end) in enumerate(zip(marks, starts, ends, strict=True), 1):
        if end <= start:
            next_one = f"shot {number + 1}" if number < len(marks) else "the film's end"
            raise ValueError(
                f"text has shot {number} at {start:g}s, and {next_one} is at {end:g}s; "
                f"each shot must begin before what follows it"
            )
        stop = marks[number].start() if number < len(marks) else len(text)
        prompt = " ".join(text[mark.end() : stop].split())
        if not prompt:
            raise ValueError(
                f"text has no prompt for shot {number}, at {start:g}s; write it after the :"
            )
        shots.append(TimedPrompt(prompt, end - start, *_read_words(number, mark[2])))
    return shots


def write_storyboard(shots: Sequence[TimedPrompt]) -> str:
    """The text of shots, a line each: what `parse_storyboard` reads."""
    lines, start = [], 0.0
    for shot in shots:
        second = _write_number(start, 3)
        words = ["cut"] * shot.cut
        words += [f"ease {shot.ease}"] * (shot.ease is not None)
        words += [f"seed {shot.seed}"] * (shot.seed is not None)
        words += [f"lora {_write_number(shot.lora, 6)}"] if shot.lora is not None else []
        lines.append(f"{' '.join([f'{second}s', *words])}: {shot.prompt}")
        start += shot.seconds
    return "\n".join(lines)


def _write_number(number: float, places: int) -> str:
    return f"{number:.{places}f}".rstrip("0").rstrip(".")


def is_storyboard(text: str) -> bool:
    """Whether a text begins as a storyboard does: with the mark of second 0."""
    mark = _MARK.match(_lead_in(text))
    return mark is not None and float(mark[1]) == 0


def _lead_in(text: str) -> str:
    """A text whose first mark stands after the end of a line, whether or not a slash led it."""
    return "\n" + text.lstrip().removeprefix("/")


def _read_words(number: int, words: str) -> tuple[bool, int | None, int | None, float | None]:
    """Whether a shot's mark says cut, and its ease, seed and lora, of words without others."""
    said = words.lower().split()
    if any(said.count(word) > 1 for word in ("cut", "ease", "seed", "lora")):
        raise ValueError(
            f"text's mark of shot {number} says {words.strip()[:40]!r}; each word once"
        )

    def find(word: str, most: float) -> int | None:
        if word not in said:
            return None
        value = said[said.index(word) + 1]
        if len(value) > 20 or int(value) > most:
            rule = f"a whole number, 0 to {most}"
            raise refusal(f"{word} of shot {number}", value[:30], rule, int(most))
        return int(value)

    lora = float(said[said.index("lora") + 1]) if "lora" in said else None
    if lora is not None:
        require_number(f"lora of shot {number}", lora, *BOUNDS["lora"])
    return "cut" in said, find("ease", BOUNDS["ease"][1]), find("seed", MOST_SEED), lora


def _squeeze_spaces(text: str) -> str:
    """No empty lines, no two spaces: what the expressions for marks would walk over again and again
    from every place in it.
    """
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def shot_lengths(seconds: Sequence[float], fps: int) -> list[int]:
    """Frames of shots of so many seconds: each begins at the frame nearest to its second.

    Raises ValueError for a shot in which no frame begins.
    """
    lengths: list[int] = []
    done = 0
    for index, (length, end) in enumerate(zip(seconds, accumulate(seconds), strict=True)):
        frames = round(end * fps) - done
        if frames < 1:
            rule = f"long enough for a frame to begin in it, {1 / fps:.3g} s at {fps} fps"
            raise refusal(f"seconds of shot {index + 1}", length, rule, f"{1 / fps:.3g}")
        lengths.append(frames)
        done += frames
    return lengths
