"""Every random draw of a film, keyed by seed, window and purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..plan.film_plan import FilmPlan


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

    def seed(self, shot: int) -> int:
        return self.sources[shot].seed

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
