"""What a film is given besides its prompt: first frames, and pictures on its way and after it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..grid import frame_length
from ..plan.given import Given


@dataclass(frozen=True)
class Conditions:
    """Given latents of a film, normalised.

    start: (1, C, n, h, w), the film's first latents: a picture (n = 1) or the end of a film to
    extend. pictures: single pictures (1, C, 1, h, w) by the latent of the film they stand in; the
    film moves through them. end: (1, C, 1, h, w), a picture of the moment after the last frame.
    following: (1, C, n, h, w), a film to lead into: n latents of it after the one that ends with
    its first frame (`FilmPlan.following_start`). source: (1, C, F, h, w), a film to regenerate with
    the plan's `denoise`.
    """

    start: Tensor | None = None
    pictures: dict[int, Tensor] = field(default_factory=dict)
    end: Tensor | None = None
    source: Tensor | None = None
    following: Tensor | None = None

    @property
    def after(self) -> Tensor:
        """What is shown after the film."""
        after = self.end if self.following is None else self.following
        assert after is not None
        return after

    @property
    def counts(self) -> Given:
        """How much is given, for the film's plan."""

        def latents(given: Tensor | None) -> int:
            return 0 if given is None else given.shape[2]

        return Given(
            start=latents(self.start),
            pictures=tuple(self.pictures),
            end=self.end is not None,
            following=latents(self.following),
            source=frame_length(latents(self.source)),
        )
