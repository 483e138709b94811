"""Which frames of a model call are computed, and of which keys and values are kept, in a film.

Frames that rest are those that are given or done: their noise level is 0, and they are not moved.
Where all frames see each other, they are computed when they begin to rest, and again in the first
call of every so many. Where blocks see only what is before them (`block`), once, and then what
they are is final. With noise over given frames (`prefix_noise`) it is that of the call in which
they are computed.

No published SkyReels-V2 checkpoint was trained for blocks. FlowCache (arXiv 2602.10825) runs
DF-1.3B so, mixed with a cache of blocks, at 0.7 less VBench. Wan 2.1's distillations Self-Forcing
(arXiv 2506.08009) and Causal-Forcing were.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from ..model.network import RunBlock, run_directly
from ..model.positions import AT_INDICES, Positions
from .keys_values import KeysValues, ModelCall, RowForward, RowFrames, Storage

if TYPE_CHECKING:
    from ..plan.film_plan import FilmPlan
    from ..rollout.film import Film


@dataclass(frozen=True)
class Keeping:
    """How frames that rest are kept.

    every: in the first of so many model calls all are computed again; it has no meaning for blocks.
    block: frames a block that sees itself and those before it; 0: each frame sees all. sinks: in a
    sliding film, how many of its first frames are seen from everywhere, in the place of the view's
    first (StreamingLLM; for films Rolling Forcing, arXiv 2509.25161, and LongLive, 2509.22622).
    """

    every: int = 5
    storage: Storage = field(default_factory=Storage)
    block: int = 0
    sinks: int = 0


def storage_of(finished_frames: str) -> Storage:
    """By a name of `FINISHED_FRAMES`."""
    return Storage("fp8" in finished_frames, "ram" in finished_frames)


def keeping_of(plan: FilmPlan, blocks: bool = False) -> Keeping | None:
    """How a film of this plan keeps frames; None where all are computed in every call.

    blocks: whether its model was trained for blocks that see themselves and those before them.
    """
    if not blocks and not plan.keeps_frames:
        return None
    storage = storage_of(plan.finished_frames)
    if not blocks:
        return Keeping(plan.refresh_every, storage)
    sinks = plan.block_size if plan.sliding else 0
    return Keeping(plan.refresh_every, storage, plan.block_size, sinks)


class FrameKeeper:
    """The frames that are kept of a film's window, for each prompt.

    It belongs to one run of a window, and reads the row at work from the film.
    """

    def __init__(self, film: Film, keeping: Keeping) -> None:
        self.film, self.keeping = film, keeping
        self.stores: dict[Hashable, KeysValues] = {}
        self.begin, self.period = film.begin, film.row // keeping.every

    def forward(
        self,
        prompts: Sequence[Hashable],
        call: ModelCall,
        x: Tensor,
        t: Tensor,
        positions: Positions = AT_INDICES,
        run_block: RunBlock = run_directly,
    ) -> Tensor:
        """The velocity (B, C, F, H, W) of the frames at work, 0 of those that rest.

        prompts: the names of those in the batch, by which they are known in any other. The rest as
        in `RowForward`.
        """
        self._follow_view()
        stores = [
            self.stores.setdefault(name, KeysValues(self.keeping.storage)) for name in prompts
        ]
        forward = RowForward(stores, self.plan_row(stores, x.shape[2]), positions)
        return forward.run(call, x, t, run_block)

    def _follow_view(self) -> None:
        """Let go of what the film's view has left, and of all when it is time to."""
        film, keeping = self.film, self.keeping
        if film.begin != self.begin:
            for store in self.stores.values():
                store.slide(film.begin - self.begin, keeping.sinks)
            self.begin = film.begin
        period = film.row // keeping.every
        if not keeping.block and period != self.period:
            self.stores.clear()
        self.period = period

    def plan_row(self, stores: Sequence[KeysValues], frames: int) -> RowFrames:
        """What the row at work computes of so many frames in view, and keeps."""
        levels, last = self.film.levels, self.film.row + 1 == self.film.rows
        assert levels is not None
        known = set.intersection(*(set(store.frames) for store in stores))
        if self.keeping.block:
            at_work = levels.moves.nonzero()[:, 0].tolist()
            return _plan_blocks(known, at_work, frames, self.keeping.block, last)
        resting = (levels.sigmas == 0).nonzero()[:, 0].tolist()
        known &= set(resting)
        compute = tuple(place for place in range(frames) if place not in known)
        return RowFrames(compute, () if last else tuple(resting))


def _plan_blocks(
    known: set[int], at_work: list[int], frames: int, block: int, last: bool
) -> RowFrames:
    """Blocks at work, and those before them that are not kept yet; others wait, or are done."""
    first = at_work[0] // block * block
    stop = min((at_work[-1] // block + 1) * block, frames)
    begin = next((place for place in range(first) if place not in known), first)
    compute = tuple(range(begin // block * block, stop))
    return RowFrames(compute, () if last else tuple(range(first)), block)


# ask(keeper, x, t) -> the guided velocity, by `FrameKeeper.forward` for each batch of prompts.
Ask = Callable[[FrameKeeper, Tensor, Tensor], Tensor]


class KeptVelocity:
    """velocity(x, t) of a film whose resting frames are kept."""

    def __init__(self, film: Film, keeping: Keeping, ask: Ask) -> None:
        self.film, self.keeping, self.ask = film, keeping, ask
        self.keeper, self.window = FrameKeeper(film, keeping), film.window

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, C, F, h, w) at timesteps (B, F) -> (B, C, F, h, w), 0 for frames that rest."""
        if self.film.window != self.window:
            self.keeper = FrameKeeper(self.film, self.keeping)
            self.window = self.film.window
        return self.ask(self.keeper, x, t)
