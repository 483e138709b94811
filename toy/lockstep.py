"""Several small films at once: their model calls wait for one another and are made as one batch.

Networks of the toy set's size spend most of a call on starting its operators, so that eight films
together take half the time of eight films in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from skyreels_model.vae import VideoVAE
from toy.toyset import ToySet

Toys = dict[str, ToySet]
Answer = Tensor | tuple[Tensor, ...]
Made = TypeVar("Made")


def make_together(toys: Toys, makes: Sequence[Callable[[Toys], Made]]) -> list[Made]:
    """What each function makes of the toy sets, in their order.

    Only one of them runs at a time, so that they need no care for one another.
    """
    meeting = Meeting(len(makes))
    shared = {
        kind: replace(
            toy, transformer=Shared(toy.transformer, meeting), vae=SharedVAE(toy.vae, meeting)
        )
        for kind, toy in toys.items()
    }
    with ThreadPoolExecutor(max(1, len(makes))) as pool:
        made = [pool.submit(meeting.attend, make, shared) for make in makes]
    return [one.result() for one in made]


@dataclass
class Call:
    """A call of a model that waits for the others, and its answer or what went wrong."""

    model: Callable[..., Answer]
    given: dict[str, Tensor | None]
    answer: Answer | None = None
    failure: BaseException | None = None

    @property
    def kind(self) -> tuple[Any, ...]:
        """What calls have in common that can be one batch."""
        shapes = (None if t is None else t.shape[1:] for t in self.given.values())
        return (self.model, *zip(self.given, shapes, strict=True))


@dataclass
class Shared:
    """A model whose calls are made when all who are present wait."""

    model: Callable[..., Tensor]
    meeting: Meeting

    def __call__(self, x: Tensor, timestep: Tensor, context: Tensor, **more: Any) -> Any:
        given = {"x": x, "timestep": timestep, "context": context, **more}
        if not all(isinstance(value, Tensor | None) for value in more.values()):
            return self.model(**given)  # what is kept of one film is no part of a batch
        return self.meeting.ask(Call(self.model, given))


@dataclass
class SharedVAE:
    """A VAE whose films are coded when all who are present wait."""

    vae: VideoVAE
    meeting: Meeting

    def encode(self, x: Tensor) -> Any:
        return self.meeting.ask(Call(self.vae.encode, {"x": x}))

    def decode(self, z: Tensor) -> Tensor:
        return self.decode_stream().push(z)

    def decode_stream(self) -> SharedStream:
        return SharedStream(DecodeStep(self.vae), self.meeting)


@dataclass(frozen=True)
class DecodeStep:
    """A push of a stream with its cache beside it, so that pushes of several streams are one."""

    vae: VideoVAE

    def __call__(self, x: Tensor, **cache: Tensor) -> tuple[Tensor, ...]:
        stream = self.vae.decode_stream(cache.values())
        return (stream.push(x), *stream.cache)


@dataclass
class SharedStream:
    """A decoding stream whose pushes are made when all who are present wait."""

    step: DecodeStep
    meeting: Meeting
    cache: dict[str, Tensor] = field(default_factory=dict)

    def push(self, latents: Tensor) -> Tensor:
        frames, *past = self.meeting.ask(Call(self.step, {"x": latents, **self.cache}))
        self.cache = {f"past {slot}": tensor for slot, tensor in enumerate(past)}
        return frames


@dataclass
class Meeting:
    """Those who make films together. Who holds the lock works, all others wait."""

    present: int
    waiting: list[Call] = field(default_factory=list)
    turn: threading.Condition = field(default_factory=threading.Condition)

    def attend(self, make: Callable[[Toys], Made], toys: Toys) -> Made:
        with self.turn:
            try:
                return make(toys)
            finally:
                self.present -= 1
                self._answer()

    def ask(self, call: Call) -> Any:
        """The answer to one's call, when all have asked. The caller holds the lock."""
        self.waiting.append(call)
        self._answer()
        self.turn.wait_for(lambda: call.answer is not None or call.failure is not None)
        if call.failure is not None:
            raise RuntimeError("a model call of films made together failed") from call.failure
        assert call.answer is not None
        return call.answer

    def _answer(self) -> None:
        """Make all calls, if nobody is left who could ask for another."""
        if len(self.waiting) < self.present or not self.waiting:
            return
        calls, self.waiting = self.waiting, []
        kinds: dict[tuple[Any, ...], list[Call]] = {}
        for call in calls:
            kinds.setdefault(call.kind, []).append(call)
        for alike in kinds.values():
            try:
                _call_together(alike)
            except BaseException as failure:
                for call in alike:
                    call.failure = failure
        self.turn.notify_all()


def _call_together(calls: list[Call]) -> None:
    """Answer calls of one kind by one call of their model."""
    names = list(calls[0].given)
    columns = {name: [call.given[name] for call in calls] for name in names}
    given = {
        name: None if column[0] is None else torch.cat(column)  # type: ignore[arg-type]
        for name, column in columns.items()
    }
    sizes = [len(call.given["x"]) for call in calls]  # type: ignore[arg-type]
    with torch.inference_mode():
        answer = calls[0].model(**given)
    if isinstance(answer, Tensor):
        parts: Iterable[Answer] = answer.split(sizes)
    else:
        parts = zip(*(one.split(sizes) for one in answer), strict=True)
    for call, part in zip(calls, parts, strict=True):
        call.answer = part
