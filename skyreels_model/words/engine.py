"""What a language model is to this pack: messages in, one answer out, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..rules import refusal, require_choice, require_number, require_whole

ROLES = ("system", "user", "assistant")
MOST_SEED = 0xFFFFFFFFFFFFFFFF

# Called once a token with the text that it adds, which may be empty: progress, a preview, and by
# raising an exception the end of the work. An engine lets every exception through at once.
OnToken = Callable[[str], None]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation. Pictures come before its text.

    pictures: (n, H, W, 3), uint8 or floats in 0..1. With `fps` they are frames of one clip, that
    many a second, which models that know videos read as one, else n pictures.
    """

    role: str
    text: str
    pictures: Tensor | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        require_choice("role", self.role, ROLES)
        if not isinstance(self.text, str):
            raise refusal("text", self.text, "a string")
        if self.fps is not None:
            require_number("fps", self.fps, 0.001, 1000)
        if self.pictures is not None:
            _require_pictures(self.pictures)


def _require_pictures(pictures: Tensor) -> None:
    shape = tuple(pictures.shape)
    if len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise refusal("pictures", shape, "of shape (pictures, height, width, 3), none of them 0")
    if pictures.dtype != torch.uint8 and not pictures.is_floating_point():
        raise refusal("pictures", str(pictures.dtype), "uint8 or floats in 0..1")
    if pictures.is_floating_point() and not pictures.isfinite().all():
        raise refusal("pictures", "not finite", "finite numbers")


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn, and when the answer ends.

    temperature: 0 takes the likeliest token always. top_p: 1 and top_k: 0 leave all of them.
    seed: with the same messages and engine the answer is the same. stop: texts at which the answer
    ends, not part of it. schema: a JSON schema of the answer, which engines that `constrains_json`
    keep to and others ignore.
    """

    max_tokens: int = 512
    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        require_whole("max_tokens", self.max_tokens, 1, 32768)
        require_number("temperature", self.temperature, 0, 2)
        require_number("top_p", self.top_p, 0.01, 1)
        require_whole("top_k", self.top_k, 0, 1000)
        require_number("repetition_penalty", self.repetition_penalty, 0.5, 2)
        require_whole("seed", self.seed, 0, MOST_SEED)


class Engine(Protocol):
    """A model that answers. What it is made of, and where it runs, is its own."""

    @property
    def name(self) -> str:
        """What people know it by, for summaries and errors."""
        ...

    @property
    def sees_pictures(self) -> bool:
        """Whether it reads the pictures of messages."""
        ...

    @property
    def constrains_json(self) -> bool:
        """Whether its answers keep to `Sampling.schema`."""
        ...

    def generate(self, messages: tuple[Message, ...], sampling: Sampling, on_token: OnToken) -> str:
        """The raw answer to the last message, of at most `sampling.max_tokens` tokens.

        Raises ValueError when it cannot answer such messages, and whatever `on_token` raises.
        """
        ...
