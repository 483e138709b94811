"""Captions of shots: a model looks at 16 frames, what it writes is read, and fused to captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..rules import require_choice, require_whole
from .ask import IF_UNREADABLE, EngineFailedError, NoAnswerError, UnansweredError, ask
from .clips import Clip, fit_size, sample_indices
from .cuts import Span
from .description import Description, json_schema
from .engine import Engine, Message, OnToken, Sampling
from .enhance import escape_weights
from .fusion import MANNERS, NO_SUBJECTS, fuse
from .prompts import read_prompt
from .reading import read_description

FPS = 2.0  # that the published captioner believes its 16 frames have, however long the shot is
MAX_TOKENS = 2048
# How bold the answers to a question asked again are: the first as published, then ever less alike.
TEMPERATURES = (0.05, 0.4, 0.8)
LONGEST_TEXT = 2400  # characters of an unreadable answer that stands for a caption


@dataclass(frozen=True)
class Settings:
    """How shots are described.

    fusing: what makes sentences of the fields; None joins them. instructions: what the captioner is
    asked, empty: `prompts/describe_shot.txt`. keep_proportions: of the frames, else 420 x 360 as
    published. if_unreadable: when no answer can be read, an error, or the text as the caption.
    drop_seed: leaves fields out of captions at random, as in training; None: keeps all.
    """

    engine: Engine
    fusing: Engine | None = None
    seed: int = 0
    instructions: str = ""
    keep_proportions: bool = False
    if_unreadable: str = "stop"
    drop_seed: int | None = None

    def __post_init__(self) -> None:
        require_choice("if_unreadable", self.if_unreadable, IF_UNREADABLE)
        if self.drop_seed is not None:
            require_whole("drop_seed", self.drop_seed, 0, 2**64 - 1)


@dataclass(frozen=True)
class Caption:
    """A shot in words. raw: all that the model wrote of it. notes: what went wrong on the way."""

    description: Description
    t2v: str
    i2v: str
    raw: str
    notes: tuple[str, ...] = ()


def look_at(clip: Clip, span: Span, keep_proportions: bool = False) -> Tensor:
    """The frames by which a shot is known, (16, H, W, 3), uint8; a single frame is one picture."""
    height, width = fit_size(*clip.size, keep_proportions)
    if span.end - span.first == 1:
        return clip.take([span.first], height, width)
    return clip.take(sample_indices(span.first, span.end), height, width)


def caption(frames: Tensor, settings: Settings, on_token: OnToken) -> Caption:
    """The caption of a shot of these frames (n, H, W, 3).

    A question whose answer cannot be read is asked again, twice at most. Raises UnansweredError,
    with the captioner's last answer as it was, and whatever `on_token` raises.
    """
    answer = _describe(frames, settings, on_token)
    notes = answer.notes
    if answer.description is None:
        text = escape_weights(shorten(answer.text, LONGEST_TEXT)) or NO_SUBJECTS
        return Caption(Description(), text, text, answer.raw, tuple(notes))
    captions = []
    for manner in MANNERS:
        try:
            text, note = _fuse(answer.description, manner, settings, on_token)
        except EngineFailedError as error:
            raise EngineFailedError(f"fusion_engine: {error}", answer.raw) from error
        captions.append(escape_weights(text))
        notes += note
    return Caption(answer.description, captions[0], captions[1], answer.raw, tuple(notes))


@dataclass(frozen=True)
class _Described:
    """What a captioner answered. description: None where its text cannot be read as one."""

    description: Description | None
    text: str
    raw: str
    notes: list[str]


def _describe(frames: Tensor, settings: Settings, on_token: OnToken) -> _Described:
    """What the captioner answers, asked again where that cannot be read."""
    fps = FPS if len(frames) > 1 else None
    # Half a character cannot be told to a model.
    own = settings.instructions.strip().encode("utf-8", "replace").decode("utf-8")
    instructions = own or read_prompt("describe_shot")
    messages = (Message("user", instructions, frames, fps),)
    notes: list[str] = []
    text, raw, failure = "", "", None
    for number, temperature in enumerate(TEMPERATURES):
        sampling = Sampling(
            MAX_TOKENS, temperature, seed=_seed(settings.seed, number), schema=json_schema()
        )
        try:
            answer = ask(settings.engine, messages, sampling, on_token)
            text, raw = answer.text, answer.raw
            notes += ["a loop in the answer was cut"] * answer.looped
            return _Described(read_description(text), text, raw, notes)
        except NoAnswerError as error:
            raw, failure = raw or error.raw, error
            notes.append(str(error))
    if settings.if_unreadable == "stop":
        raise NoAnswerError(f"{failure} (asked {len(TEMPERATURES)} times)", raw) from failure
    return _Described(None, text, raw, notes)


def _fuse(
    description: Description, manner: str, settings: Settings, on_token: OnToken
) -> tuple[str, list[str]]:
    """The caption, and notes; the fields joined where the fusing model gives nothing."""

    def fused(engine: Engine | None) -> str:
        return fuse(description, manner, engine, on_token, settings.seed, settings.drop_seed)

    try:
        return fused(settings.fusing), []
    except NoAnswerError as error:
        return fused(None), [f"{error}; the fields of the {manner} caption were joined instead"]


def _seed(seed: int, number: int) -> int:
    return (seed + number) % 2**64


def shorten(text: str, most: int) -> str:
    """One line of at most `most` characters, ended after a sentence where there is one."""
    text = " ".join(text.split())
    if len(text) <= most:
        return text
    text = text[:most]
    end = max(text.rfind(mark) for mark in (". ", "! ", "? ", "\u3002"))
    if end < most // 2:
        end = text.rfind(" ") - 1
    return text[: end + 1] if end > 0 else text


def caption_spans(
    clip: Clip,
    spans: Sequence[Span],
    settings: Settings,
    start: Callable[[int], OnToken],
    known: Mapping[Span, Caption] | None = None,
) -> Iterator[Caption]:
    """The caption of each span, in order; `start` gives what hears the tokens of one.

    known: captions of spans that are not looked at again. Errors of several spans say which it was.
    """
    known = known or {}
    for number, span in enumerate(spans):
        if span in known:
            yield known[span]
            continue
        frames = look_at(clip, span, settings.keep_proportions)
        one = dataclasses.replace(settings, seed=_seed(settings.seed, number * len(TEMPERATURES)))
        try:
            yield caption(frames, one, start(number))
        except UnansweredError as error:
            if len(spans) == 1:
                raise
            place = f"shot {number + 1} of {len(spans)}, at {clip.second(span.first):.1f} s"
            raise error.within(place) from error
