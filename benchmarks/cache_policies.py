"""Other ways to leave out model calls, as policies of the cache: what the default must beat.

Each is the rule of a published method at the seam of whole model calls, held answers included.
Thresholds are on raw statistics, because the published calibrations are for other models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from skyreels_model.cache.velocity import Call

Embed = Callable[[Tensor], Tensor]  # timesteps (B, F) -> time embeddings (B, F, D)


@dataclass
class Held:
    """What the rules here remember: the last answer, and the sums of change since."""

    velocity: Tensor
    x: Tensor
    embedding: Tensor | None
    changed: Tensor
    rate: float = 0.0
    since: int = 0


@dataclass(frozen=True)
class EveryNth:
    """One call in n, its answer held for the others."""

    n: int

    def forecast(self, state: Held | None, call: Call) -> Tensor | None:
        if state is None or state.since + 1 >= self.n or call.row + 1 == call.rows:
            return None
        state.since += 1
        return state.velocity

    def record(self, state: Held | None, call: Call, velocity: Tensor) -> Held:
        return Held(velocity, call.x, None, torch.zeros(1))


@dataclass(frozen=True)
class TimeRule:
    """TeaCache's statistic, the change of the time embedding since the last call of any kind.

    Over all frames at once (TeaCache), or asked of each frame that moves (`each`, FlowCache's).
    """

    threshold: float
    embed: Embed
    each: bool = False

    def forecast(self, state: Held | None, call: Call) -> Tensor | None:
        if state is None:
            return None
        embedding = self.embed(call.t)
        assert state.embedding is not None
        dims = (0, 2) if self.each else (0, 1, 2)
        change = (embedding - state.embedding).abs().mean(dims) / state.embedding.abs().mean(dims)
        state.changed, state.embedding = state.changed + change, embedding
        worst = state.changed[call.levels.moves].max() if self.each else state.changed
        if float(worst) >= self.threshold or call.row + 1 == call.rows:
            return None
        return state.velocity

    def record(self, state: Held | None, call: Call, velocity: Tensor) -> Held:
        frames = len(call.levels.sigmas)
        changed = torch.zeros(frames) if self.each else torch.zeros(())
        return Held(velocity, call.x, self.embed(call.t), changed)


@dataclass(frozen=True)
class EasyRule:
    """EasyCache's: the answer's change for a change of the input, one number over all frames.

    A call left out is answered by the input and the last difference to it.
    """

    threshold: float

    def forecast(self, state: Held | None, call: Call) -> Tensor | None:
        if state is None or not state.rate or call.row + 1 == call.rows:
            return None
        moved = float((call.x - state.x).abs().mean())
        total = state.rate * moved / float(state.velocity.abs().mean())
        if not math.isfinite(total) or total >= self.threshold:
            return None
        return call.x + (state.velocity - state.x)

    def record(self, state: Held | None, call: Call, velocity: Tensor) -> Held:
        new = Held(velocity, call.x, None, torch.zeros(1))
        if state is not None:
            moved = float((call.x - state.x).abs().mean())
            new.rate = float((velocity - state.velocity).abs().mean()) / max(moved, 1e-9)
        return new
