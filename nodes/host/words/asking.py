"""How nodes ask: any engine from a socket, with progress, a preview, and cancel at each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils

from ....skyreels_model.words import Answer, Engine, Message, NoAnswerError, Sampling, ask
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


class Asker:
    """Asks an engine as often as a node needs it, under one progress bar."""

    def __init__(self, engine: Engine, calls: int, max_tokens: int) -> None:
        self.engine, self.max_tokens = engine, max_tokens
        self.done = 0
        self.bar = comfy.utils.ProgressBar(calls * max_tokens)

    def ask(self, messages: Sequence[Message], sampling: Sampling) -> Answer:
        """As `skyreels_model.words.ask`; its last words are shown on the node meanwhile."""
        text, count = "", 0

        def on_token(piece: str) -> None:
            nonlocal text, count
            comfy.model_management.throw_exception_if_processing_interrupted()
            text, count = text + piece, count + 1
            self.bar.update_absolute(self.done + min(count, self.max_tokens))
            if count % SHOW_EVERY == 0:
                notice.show(text[-SHOWN:])

        comfy.model_management.throw_exception_if_processing_interrupted()
        try:
            answer = ask(self.engine, messages, sampling, on_token)
        except NoAnswerError as error:
            raise NoAnswerError(f"engine: {error}", error.raw) from error
        except ValueError as error:
            raise ValueError(f"engine: {error}") from error
        self.done += self.max_tokens
        self.bar.update_absolute(self.done)
        return answer
