"""A film in the making: its whole state, what its loop tells, and where its noise comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ..plan.film_plan import FilmPlan
from ..plan.windows import Window
from ..schedule.flow import RowLevels
from ..solvers import SolverState
from .conditions import Conditions

# velocity(x (1, C, F, h, w), t (1, F) int64 on x's device) -> (1, C, F, h, w), guidance included.
Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Tail:
    """What a history keeps of the film so far.

    frames (1, 3, n, H, W) and latents (1, C, n, h, w): the last ones, for an overlap may reach back
    further than one window's new frames. colours: the statistics (4, 3) of the frames of the
    sequence's first window, to which those that go on are held.
    """

    frames: Tensor | None = None
    latents: Tensor | None = None
    colours: Tensor | None = None


class CacheState(Protocol):
    """What a cache of model calls remembers of a window, a dataclass of tensors and numbers."""

    def move(self, device: torch.device | str) -> None:
        """Bring what is compared with latents to their device."""


@runtime_checkable
class Windows(Protocol):
    """Finished windows (1, C, F, h, w) in the order in which they are made: a list, or a disk."""

    def append(self, latents: Tensor, /) -> None: ...

    def __getitem__(self, index: int, /) -> Tensor: ...

    def __iter__(self) -> Iterator[Tensor]: ...

    def __len__(self) -> int: ...


@dataclass
class Film:
    """The whole state of a film in the making.

    window, row: the next row to do, rows: how many the window has. latents: the current window's
    (1, C, F, h, w), float32, normalised, the given frames first, a picture of the film's end after
    its own. levels: the noise levels of the row at work, of the frames that the model is shown.
    nominal: the highest of them that moves, as far as that falls in a window (a host's noise
    level). cache: what a cache of model calls remembers of the window, a dataclass of tensors and
    numbers; skipped: how many rows of the film it has forecast so far. carried: the latents that
    the window made before gives to the current one. tail: what `history` keeps of the film so far.
    finished: the windows done, given frames included, on the CPU or on a disk. reference: the
    statistics (1 + C, C) that a window's colours are held to. begin, passed: of a sliding film the
    first latent in view, counted from its sequence's first, and those that the view has left, on
    the CPU.
    """

    plan: FilmPlan
    solver: str = "unipc"
    window: int = 0
    row: int = 0
    rows: int = 0
    levels: RowLevels | None = None
    nominal: float = 1.0
    latents: Tensor | None = None
    solver_state: SolverState | None = None
    cache: CacheState | None = None
    skipped: int = 0
    carried: Tensor | None = None
    tail: Tail = field(default_factory=Tail)
    conditions: Conditions = field(default_factory=Conditions)
    finished: Windows = field(default_factory=list[Tensor])
    reference: Tensor | None = None
    begin: int = 0
    passed: list[Tensor] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.window == self.plan.num_windows

    @property
    def sigma(self) -> float:
        """The largest noise level that the row at work moves."""
        return 1.0 if self.levels is None else self.levels.highest

    def begin_row(self, index: Tensor, update: Tensor, fresh: Tensor) -> None:
        """Take up the row that is done next: what of it the model is shown, at which levels.

        index, update, fresh: of its frames (F,), as in the timestep matrix.
        """
        seen = slice(self.plan.count_visible(index))
        levels = self.plan.schedule().row_levels(index[seen], update[seen], fresh[seen])
        self.levels, self.nominal = levels, min(self.nominal, levels.highest)

    def move(self, device: torch.device | str) -> None:
        """Bring the window at work to a device, where it comes from a disk."""
        assert self.latents is not None and self.solver_state is not None
        self.latents = self.latents.to(device)
        history = self.solver_state.history
        self.solver_state = SolverState({n: tensor.to(device) for n, tensor in history.items()})
        if self.cache is not None:
            self.cache.move(device)


@dataclass(frozen=True)
class RowDone:
    """One model call has been made, or forecast by a cache, and its frames moved.

    frame: the first latent frame of the window that moved. denoised: its clean estimate
    (1, C, 1, h, w), normalised. skipped: how many rows of the film a cache has forecast so far.
    """

    window: Window
    row: int
    rows: int
    frame: int
    denoised: Tensor
    skipped: int = 0


@dataclass(frozen=True)
class WindowDone:
    """A window is finished: its latents (1, C, F, h, w), normalised, given frames first."""

    window: Window
    latents: Tensor
