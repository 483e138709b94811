"""A film in the making: its whole state, what its loop tells, and where its noise comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from .conditions import Conditions
from .history import Tail
from .plan import FilmPlan
from .schedule import TRAIN_TIMESTEPS
from .solvers import SolverState
from .windows import Window

CHANNELS = 16

# velocity(x (1, C, F, h, w), t (1, F) int64 on x's device) -> (1, C, F, h, w), guidance included.
Velocity = Callable[[Tensor, Tensor], Tensor]


class NoiseSource(Protocol):
    """Where all random draws of a film come from."""

    def initial(self, window: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal (1, C, F, h, w), the start of a window."""
        ...

    def prefix(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal (1, C, O, h, w), laid over the given frames of one row."""
        ...

    def renoise(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal (1, C, F, h, w), what a stochastic solver adds after one row."""
        ...


class SeededNoise:
    """Noise keyed by (seed, window, purpose, row), drawn on the CPU frame by frame.

    So a window's noise depends neither on the machine, nor on what ran before, nor on how long the
    window or the film is.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def initial(self, window: int, shape: tuple[int, ...]) -> Tensor:
        return self._draw(f"{self.seed}/{window}/initial", shape)

    def prefix(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        return self._draw(f"{self.seed}/{window}/prefix/{row}", shape)

    def renoise(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        return self._draw(f"{self.seed}/{window}/renoise/{row}", shape)

    @staticmethod
    def _draw(key: str, shape: tuple[int, ...]) -> Tensor:
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        batch, channels, frames, h, w = shape
        return torch.randn((frames, batch, channels, h, w), generator=generator).permute(
            1, 2, 0, 3, 4
        )


class ShotNoise:
    """Noise of a film whose shots may have seeds of their own, for one plan."""

    def __init__(self, plan: FilmPlan, seeds: Sequence[int]) -> None:
        """seeds: of each shot."""
        self.plan, self.sources = plan, [SeededNoise(seed) for seed in seeds]

    def initial(self, window: int, shape: tuple[int, ...]) -> Tensor:
        """`window` is a latent of the film where there are no windows but one sequence."""
        shot = self.plan.shot_at(window) if self.plan.sliding else self._shot(window)
        return self.sources[shot].initial(window, shape)

    def prefix(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        return self.sources[self._shot(window)].prefix(window, row, shape)

    def renoise(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        return self.sources[self._shot(window)].renoise(window, row, shape)

    def _shot(self, window: int) -> int:
        return self.plan.window_at(window).shot


@dataclass
class Film:
    """The whole state of a film in the making.

    window, row: the next row to do. latents: the current window's (1, C, F, h, w), float32,
    normalised, the given frames first, a picture of the film's end behind its own. sigma: the
    largest noise level that the row at work moves (a host's nominal one). carried: the latents
    that the window made before gives to the current one. tail: what `history` keeps of the film so
    far. finished: the windows done, given frames included, on the CPU. reference: the statistics
    (1 + C, C) that a window's colours are held to. begin, passed: of a sliding film the first
    latent in view, counted from its sequence's first, and those that the view has left, on the CPU.
    """

    plan: FilmPlan
    solver: str = "unipc"
    window: int = 0
    row: int = 0
    sigma: float = 1.0
    latents: Tensor | None = None
    solver_state: SolverState | None = None
    carried: Tensor | None = None
    tail: Tail = field(default_factory=Tail)
    conditions: Conditions = field(default_factory=Conditions)
    finished: list[Tensor] = field(default_factory=list)
    reference: Tensor | None = None
    begin: int = 0
    passed: list[Tensor] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.window == self.plan.num_windows


@dataclass(frozen=True)
class RowDone:
    """One model call has been made and its frames moved.

    frame: the first latent frame of the window that moved. denoised: its clean estimate
    (1, C, 1, h, w), normalised.
    """

    window: Window
    row: int
    rows: int
    frame: int
    denoised: Tensor


@dataclass(frozen=True)
class WindowDone:
    """A window is finished: its latents (1, C, F, h, w), normalised, given frames first."""

    window: Window
    latents: Tensor


def begun(film: Film, noise: Tensor, latents: Tensor) -> Tensor:
    """Noise (1, C, n, h, w) for these latents of the film (n,), laid over any source."""
    source = film.conditions.source
    if source is None:
        return noise
    sigma = float(film.plan.schedule().sigmas[0])
    return (1 - sigma) * source[:, :, latents].to(noise) + sigma * noise


def noised_given(film: Film, first: int, last: int, level: int, noise: NoiseSource) -> Tensor:
    """The model's view of the latents: the first and last of them noised, afresh in each row.

    A fraction `level` / 1000 of noise is laid over `first` and `last` of them, which are given.
    """
    x = film.latents
    assert x is not None
    if not first + last or not level:
        return x
    made = x.shape[2] - last
    given = torch.cat([x[:, :, :first], x[:, :, made:]], dim=2)
    epsilon = noise.prefix(film.window, film.row, tuple(given.shape)).to(x)
    sigma = level / TRAIN_TIMESTEPS
    given = given * (1 - sigma) + epsilon * sigma
    return torch.cat([given[:, :, :first], x[:, :, first:made], given[:, :, first:]], dim=2)
