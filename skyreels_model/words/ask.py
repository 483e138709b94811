"""Asking an engine so that what comes back is an answer: no thoughts, no loops, never empty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .engine import Engine, Message, OnToken, Sampling
from .tidy import cut_loop, drop_thoughts, find_loop

LOOK_EVERY = 16  # tokens between two looks for a loop
# What may become of a caption that cannot be read.
IF_UNREADABLE = ("stop", "use the text")


class UnansweredError(ValueError):
    """There is no answer; `raw` is what was written all the same."""

    def __init__(self, message: str, raw: str) -> None:
        super().__init__(message)
        self.raw = raw

    def within(self, place: str) -> UnansweredError:
        """The same, with where it was before it."""
        return type(self)(f"{place}: {self}", self.raw)


class NoAnswerError(UnansweredError):
    """The engine gave nothing to work with; asking it again may help."""


class EngineFailedError(UnansweredError):
    """The engine ended with an error."""


@dataclass(frozen=True)
class Answer:
    """text: what was said, trimmed. raw: all that was written. looped: whether a loop was cut."""

    text: str
    raw: str
    looped: bool = False


class _LoopFound(Exception):
    """Ends the work of an engine that repeats itself."""


class _Listener:
    """Hands tokens on, and watches what they add up to."""

    def __init__(self, on_token: OnToken) -> None:
        self.on_token, self.text, self.count = on_token, "", 0

    def __call__(self, piece: str) -> None:
        self.text += piece
        self.count += 1
        self.on_token(piece)
        if self.count % LOOK_EVERY == 0 and find_loop(self.text) is not None:
            raise _LoopFound


def ask(
    engine: Engine, messages: Sequence[Message], sampling: Sampling, on_token: OnToken
) -> Answer:
    """What the engine answers, without thoughts, and ended where it began to repeat itself.

    Raises ValueError where there are pictures that it cannot see, NoAnswerError when nothing is
    left, EngineFailedError for the engine's own ValueErrors, and whatever `on_token` raises.
    """
    if not engine.sees_pictures and any(m.pictures is not None for m in messages):
        raise ValueError(
            f"{engine.name} reads text only; take a model with vision, such as Qwen2.5-VL, or "
            "leave the pictures out"
        )
    listener = _Listener(on_token)
    try:
        raw = engine.generate(tuple(messages), sampling, listener)
    except _LoopFound:
        raw = listener.text
    except ValueError as error:
        raise EngineFailedError(str(error), listener.text) from error
    text = cut_loop(raw)
    answer = Answer(drop_thoughts(text), raw, looped=len(text) < len(raw))
    if not answer.text:
        raise NoAnswerError(_why_empty(engine, sampling, raw), raw)
    return answer


def _why_empty(engine: Engine, sampling: Sampling, raw: str) -> str:
    if not raw.strip():
        return f"{engine.name} answered with nothing; try another seed or another model"
    return (
        f"{engine.name} only thought and did not answer within {sampling.max_tokens} tokens; allow "
        "more, or take a model that does not think"
    )
