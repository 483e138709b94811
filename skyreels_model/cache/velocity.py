"""A cache around `velocity(x, t)`: the seam where a policy answers in the model's place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..schedule.flow import RowLevels

if TYPE_CHECKING:
    from ..rollout.film import Film, Velocity


@dataclass(frozen=True)
class Call:
    """A model call that is to be made or forecast.

    x: (B, C, F, h, w). t: (B, F). levels: what is known of its noise levels without the device.
    begin: the first latent that x shows, counted from its window's or sequence's first. row, rows:
    its number in the window, and how many there are. sigmas (N + 1,): the noise levels of a frame's
    way. guidance: its guidance scale.
    """

    x: Tensor
    t: Tensor
    levels: RowLevels
    begin: int
    row: int
    rows: int
    sigmas: Tensor
    guidance: float = 1.0


class Policy(Protocol):
    """Decides which model calls are made, and answers for the others.

    What it remembers of a window is a state of its own making: a dataclass of tensors and numbers.
    It lies in `Film.cache`, so that whoever writes a film down has it, and is None before the
    window's first answer.
    """

    def forecast(self, state: Any, call: Call) -> Tensor | None:
        """The velocity (B, C, F, h, w) without the model, or None where it must be asked."""
        ...

    def record(self, state: Any, call: Call, velocity: Tensor) -> Any:
        """The state after the model's answer."""
        ...


class CachedVelocity:
    """velocity(x, t) of a film, of which a policy forecasts some calls."""

    def __init__(
        self,
        film: Film,
        velocity: Velocity,
        policy: Policy,
        guidance: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """guidance: the scale of the row at work."""
        self.film, self.velocity, self.policy, self.guidance = film, velocity, policy, guidance

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, C, F, h, w) at timesteps (B, F) -> (B, C, F, h, w)."""
        film = self.film
        assert film.levels is not None
        place = film.begin, film.row, film.rows, film.plan.schedule().sigmas
        call = Call(x, t, film.levels, *place, self.guidance())
        forecast = self.policy.forecast(film.cache, call)
        if forecast is not None:
            film.skipped += 1
            return forecast
        velocity = self.velocity(x, t)
        film.cache = self.policy.record(film.cache, call, velocity)
        return velocity
