"""The loop: windows of a film, each denoised row by row, each continuing the one before.

The loop knows the model only as `velocity(x, t)` and the VAE only as `history(latents)`. Its whole
state is a `Film`; progress, previews, cancelling and resuming are consumers of what it yields.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..plan.film_plan import FilmPlan
from .anchor import hold_window
from .film import Film, RowDone, Tail, Velocity, WindowDone
from .finite import FiniteVelocity
from .history import History
from .noise import NoiseSource
from .sliding import slide
from .window import denoise_window, shown_after


def generate(
    velocity: Velocity,
    plan: FilmPlan,
    noise: NoiseSource,
    history: History | None = None,
    solver: str = "unipc",
    device: torch.device | str = "cpu",
    film: Film | None = None,
) -> Iterator[RowDone | WindowDone]:
    """Make a film, or go on with `film`. Yields after every row and after every window.

    history is needed by films that continue a window; `history.new_history` gives the plan's.
    """
    film = film or Film(plan, solver)
    while not film.done:
        yield from denoise(film, velocity, noise, device)
        yield finish_window(film, history)


def denoise(
    film: Film, velocity: Velocity, noise: NoiseSource, device: torch.device | str = "cpu"
) -> Iterator[RowDone]:
    """Do the rows that are left of the film's current window, or of all of a sliding film.

    Raises ValueError soon after a velocity that is not finite.
    """
    rows = slide if film.plan.sliding else denoise_window
    checked = FiniteVelocity(film, velocity)
    if film.latents is not None:
        film.move(device)
    yield from rows(film, checked, noise, device)
    checked.read()


def finish_window(film: Film, history: History | None) -> WindowDone:
    """Put the current window among the finished and prepare what is given to the next."""
    plan, window = film.plan, film.plan.window_at(film.window)
    latents = close_window(film)
    carried, tail = None, Tail()
    if film.window + 1 < plan.num_windows and plan.continues(plan.window_at(film.window + 1)):
        carried, tail = carry_over(film, latents, history)
    # Nothing of the film changes before, so that a history that fails can be asked again.
    advance(film, latents, carried, tail)
    return WindowDone(window, latents)


def close_window(film: Film) -> Tensor:
    """The latents (1, C, F, h, w) of the current window, all rows of which are done."""
    assert film.latents is not None
    window, whole = film.plan.window_at(film.window), film.latents
    if film.passed:  # never the whole of a long sequence on the device
        whole = torch.cat([*film.passed, whole.cpu()], dim=2)
    return hold_window(film, window, whole[:, :, : window.length])


def carry_over(film: Film, latents: Tensor, history: History | None) -> tuple[Tensor, Tail]:
    """What the current window, of these latents, gives to the next, and the tail behind it."""
    plan, window = film.plan, film.plan.window_at(film.window)
    if history is None:
        raise ValueError(f"the film has {plan.num_windows} windows; continuing one needs `history`")
    if plan.backwards:
        latents = torch.cat([latents, shown_after(film, window).to(latents)], dim=2)
    return history(latents, window.repeated, film.tail)


def advance(film: Film, latents: Tensor, carried: Tensor | None, tail: Tail) -> None:
    """Put the current window, of these latents, among the finished, and go on to the next."""
    film.finished.append(latents.cpu())
    film.window, film.row, film.latents = film.window + 1, 0, None
    film.solver_state, film.cache, film.levels, film.nominal = None, None, None, 1.0
    film.begin, film.passed, film.carried, film.tail = 0, [], carried, tail
