"""What a film is given besides its prompt: first frames, and pictures on its way and behind it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from torch import Tensor

from ..plan.film_plan import FilmPlan


@dataclass(frozen=True)
class Conditions:
    """Given latents of a film, normalised.

    start: (1, C, n, h, w), the film's first latents: a picture (n = 1) or the end of a film to
    extend. pictures: single pictures (1, C, 1, h, w) by the latent of the film they stand in; the
    film moves through them. end: (1, C, 1, h, w), a picture of the moment behind the last frame.
    following: (1, C, n, h, w), a film to lead up to: n latents of it behind the one that ends with
    its first frame (`FilmPlan.following_start`). source: (1, C, F, h, w), a film to make anew with
    the plan's `denoise`.
    """

    start: Tensor | None = None
    pictures: dict[int, Tensor] = field(default_factory=dict)
    end: Tensor | None = None
    source: Tensor | None = None
    following: Tensor | None = None

    @property
    def behind(self) -> Tensor:
        """What is shown behind the film."""
        behind = self.end if self.following is None else self.following
        assert behind is not None
        return behind

    def fit(self, plan: FilmPlan) -> FilmPlan:
        """The plan with places for what is given; raises ValueError where there is none."""
        if self.source is None and plan.denoise < 1:
            raise ValueError(
                f"denoise is {plan.denoise:g} and there is no source film to begin from; give one, "
                f"or set denoise to 1"
            )
        if self.source is not None and plan.denoise == 1:
            raise ValueError(
                "denoise is 1, which leaves nothing of the source film; set it below 1 (0.3 keeps "
                "most of it, 0.8 little), or give no source"
            )
        return dataclasses.replace(
            plan,
            start=0 if self.start is None else self.start.shape[2],
            pictures=tuple(sorted(self.pictures)),
            end=self.end is not None,
            following=0 if self.following is None else self.following.shape[2],
        )
