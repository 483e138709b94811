"""A velocity that is not finite ends a film at once: nothing after it would be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .film import Film, Velocity


class FiniteVelocity:
    """A velocity function that raises ValueError after an answer with NaN or infinity in it.

    On a GPU the answer is asked for without waiting, and read when the next model call has been
    launched, so the device never idles for it; `read` at the end is for the last one.
    """

    def __init__(self, film: Film, velocity: Velocity) -> None:
        self.film, self.velocity = film, velocity
        self.call = 0
        self.pending: Callable[[], bool] | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """(1, C, F, h, w) at timesteps (1, F) -> (1, C, F, h, w)."""
        v = self.velocity(x, t)
        self.read()
        self.call, self.pending = self.film.row + 1, ask_finite(v)
        if not v.is_cuda:
            self.read()
        return v

    def read(self) -> None:
        """Raise ValueError if the last answer asked for was not finite."""
        pending, self.pending = self.pending, None
        if pending is None or pending():
            return
        film = self.film
        raise ValueError(
            f"the model's answer has numbers that are infinite or not a number (window "
            f"{film.window + 1} of {film.plan.num_windows}, model call {self.call} in it). Try "
            f"another number format (bf16 or fp32 instead of fp16), another attention, or the "
            f"model without LoRAs and patches"
        )


def ask_finite(v: Tensor) -> Callable[[], bool]:
    """Whether all numbers of `v` are finite, as a function that waits for the answer."""
    finite = torch.isfinite(v).all()
    if v.is_meta:
        return lambda: True  # it has no numbers
    if not v.is_cuda:
        return lambda: bool(finite)
    answer = finite.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(v.device))

    def wait() -> bool:
        arrived.synchronize()
        return bool(answer)

    return wait
