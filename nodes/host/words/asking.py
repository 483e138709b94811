"""How nodes ask: any engine from a socket, with progress, a preview, and cancel at each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
from comfy_execution.graph_utils import ExecutionBlocker

from ....skyreels_model.words import (
    Answer,
    Engine,
    Message,
    OnToken,
    Sampling,
    UnansweredError,
    ask,
)
from .. import notice
from .clip import CLIPEngine

SHOW_EVERY = 8  # tokens between two previews
SHOWN = 400  # characters


def as_engine(value: Any, name: str = "engine") -> Engine:
    """What a socket for engines gives: an engine, or a CLIP that writes text.

    Raises ValueError for any other CLIP, which names the input.
    """
    if all(hasattr(value, name) for name in ("generate", "sees_pictures", "constrains_json")):
        engine: Engine = value
        return engine
    try:
        return CLIPEngine(value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def listen(step: Callable[[int], None], label: str = "") -> OnToken:
    """Hears an answer's tokens: `step` gets their number, the node shows the last words.

    Ends the work where the person has cancelled it.
    """
    text, count = "", 0

    def on_token(piece: str) -> None:
        nonlocal text, count
        comfy.model_management.throw_exception_if_processing_interrupted()
        text, count = (text + piece)[-SHOWN:], count + 1
        step(count)
        if count % SHOW_EVERY == 0:
            notice.show(label + text)

    return on_token


def stop(error: UnansweredError) -> Any:
    """What stands in outputs that there are not, so that others can say what there is.

    The error is shown at whatever node has such an output for an input, and on the node at work.
    """
    notice.warn(str(error))
    return ExecutionBlocker(str(error))


class Asker:
    """Asks an engine as often as a node needs it, under one progress bar.

    raw: all that was written so far, answers apart.
    """

    def __init__(self, engine: Engine, calls: int, max_tokens: int) -> None:
        self.engine, self.max_tokens = engine, max_tokens
        self.done, self._answers = 0, list[str]()
        self.bar = comfy.utils.ProgressBar(calls * max_tokens)

    @property
    def raw(self) -> str:
        return "\n\n".join(filter(None, map(str.strip, self._answers)))

    def ask(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """As `skyreels_model.words.ask`; its last words are shown on the node meanwhile."""

        def step(count: int) -> None:
            self.bar.update_absolute(self.done + min(count, self.max_tokens))

        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            answer = ask(self.engine, messages, sampling, listen(step))
        except UnansweredError as error:
            self._answers.append(error.raw)
            raise error.within("engine") from error
        except ValueError as error:
            raise ValueError(f"engine: {error}") from error
        self._answers.append(answer.raw)
        self.done += self.max_tokens
        self.bar.update_absolute(self.done)
        return answer
