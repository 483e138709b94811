"""Every random draw of a film, keyed by seed, window and purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..plan.film_plan import FilmPlan
from ..plan.windows import Window


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
    """Noise of a film whose shots and windows may have seeds of their own, for one plan."""

    def __init__(
        self, plan: FilmPlan, seeds: Sequence[int], windows: Mapping[int, int] | None = None
    ) -> None:
        """seeds: of each shot. windows: of single windows, by number."""
        self.plan, self.sources = plan, [SeededNoise(seed) for seed in seeds]
        self.windows = {index: SeededNoise(seed) for index, seed in (windows or {}).items()}

    def seeds(self, window: Window) -> list[int]:
        """The seeds that a window's noise comes from: of all shots of a sequence that slides."""
        if not self.plan.sliding:
            return [self._source(window.index).seed]
        last = self.plan.shot_at(window.start + window.length - 1)
        return [source.seed for source in self.sources[window.shot : last + 1]]

    def initial(self, window: int, shape: tuple[int, ...]) -> Tensor:
        """`window` is a latent of the film where there are no windows but one sequence."""
        if self.plan.sliding:
            return self.sources[self.plan.shot_at(window)].initial(window, shape)
        return self._source(window).initial(window, shape)

    def prefix(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        return self._source(window).prefix(window, row, shape)

    def renoise(self, window: int, row: int, shape: tuple[int, ...]) -> Tensor:
        return self._source(window).renoise(window, row, shape)

    def _source(self, window: int) -> SeededNoise:
        own = self.windows.get(window)
        return self.sources[self.plan.window_at(window).shot] if own is None else own
