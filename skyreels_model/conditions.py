"""What a film is given besides its prompt: first frames, and pictures on its way and behind it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from torch import Tensor

from .plan import FilmPlan


@dataclass(frozen=True)
class Conditions:
    """Given latents of a film, normalised.

    start: (1, C, n, h, w), the film's first latents: a picture (n = 1) or the end of a film to
    extend. pictures: single pictures (1, C, 1, h, w) by the latent of the film they stand in; the
    film moves through them. end: (1, C, 1, h, w), a picture of the moment behind the last frame.
    """

    start: Tensor | None = None
    pictures: dict[int, Tensor] = field(default_factory=dict)
    end: Tensor | None = None

    def fit(self, plan: FilmPlan) -> FilmPlan:
        """The plan with places for what is given; raises ValueError where there is none."""
        return dataclasses.replace(
            plan,
            start=0 if self.start is None else self.start.shape[2],
            pictures=tuple(sorted(self.pictures)),
            end=self.end is not None,
        )
