"""The loop: windows of a film, each denoised row by row, each continuing the one before.

The loop knows the model only as `velocity(x, t)` and the VAE only as `history(latents)`. Its whole
state is a `Film`; progress, previews, cancelling and resuming are consumers of what it yields.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .drift import anchored, statistics
from .film import (
    CHANNELS,
    Film,
    NoiseSource,
    RowDone,
    SeededNoise,
    Velocity,
    WindowDone,
    begun,
    noised_given,
)
from .history import History, Tail, new_frames
from .plan import FilmPlan
from .sliding import slide
from .solvers import SOLVERS
from .vae import VideoVAE, denormalize_latents
from .windows import Window

__all__ = [
    "CHANNELS",
    "Film",
    "NoiseSource",
    "RowDone",
    "SeededNoise",
    "Velocity",
    "WindowDone",
    "denoise",
    "denoise_window",
    "film_frames",
    "finish_window",
    "generate",
]


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
    """Do the rows that are left of the film's current window, or of all of a sliding film."""
    rows = slide if film.plan.sliding else denoise_window
    return rows(film, velocity, noise, device)


def denoise_window(
    film: Film, velocity: Velocity, noise: NoiseSource, device: torch.device | str = "cpu"
) -> Iterator[RowDone]:
    """Do the rows that are left of the film's current window."""
    plan, window = film.plan, film.plan.window_at(film.window)
    schedule, matrix = plan.schedule(), plan.matrix(window)
    solver = SOLVERS[film.solver](schedule.sigmas, device)
    if film.latents is None:
        film.latents = _given_latents(film, window).to(device)
        film.solver_state = solver.start(film.latents)
    assert film.solver_state is not None
    last = window.end if plan.following else 0  # a picture behind the film stays clean
    timesteps = matrix.timesteps.clone()
    timesteps[:, : window.prefix] = plan.prefix_noise
    timesteps[:, timesteps.shape[1] - last :] = plan.prefix_noise
    timesteps, update = timesteps.to(device), matrix.update.to(device)
    # Frames not being moved get the nearest legal step; the update mask leaves them alone.
    step = (matrix.index - 1).clamp(0, schedule.steps - 1)
    sigmas = schedule.sigmas[step]  # (R, F)
    moved = [matrix.update[r].nonzero()[:, 0].tolist() for r in range(matrix.rows)]
    begins = matrix.fresh.any(dim=1).tolist()
    step = step.to(device)
    while film.row < matrix.rows:
        row, frame = film.row, moved[film.row][0]
        if begins[row]:
            film.latents = _with_noise(film, window, matrix.fresh[row], noise)
        x = film.latents
        film.sigma = float(sigmas[row, moved[row]].max())
        shown = noised_given(film, window.prefix, last, plan.prefix_noise, noise)
        v = velocity(shown, timesteps[row : row + 1])
        drawn = noise.renoise(film.window, row, tuple(x.shape)).to(x) if solver.stochastic else None
        film.latents = solver.step(film.solver_state, x, v, step[row], update[row], drawn)
        film.row += 1
        one = slice(frame, frame + 1)
        denoised = x[:, :, one] - float(sigmas[row, frame]) * v[:, :, one]
        yield RowDone(window, row, matrix.rows, frame, denoised)


def finish_window(film: Film, history: History | None) -> WindowDone:
    """Put the current window among the finished and prepare what is given to the next."""
    plan, window = film.plan, film.plan.window_at(film.window)
    assert film.latents is not None
    whole = film.latents
    if film.passed:  # never the whole of a long sequence on the device
        whole = torch.cat([*film.passed, whole.cpu()], dim=2)
    latents = _held(film, window, whole[:, :, : window.length])
    next_window, carried, tail = film.window + 1, None, Tail()
    if next_window < plan.num_windows and plan.continues(plan.window_at(next_window)):
        if history is None:
            raise ValueError(
                f"the film has {plan.num_windows} windows; continuing one needs `history`"
            )
        behind = whole[:, :, window.length :]
        shown = torch.cat([latents, behind], dim=2) if plan.backwards else latents
        carried, tail = history(shown, window.repeated, film.tail)
    # Nothing of the film changes before, so that a history that fails can be asked again.
    film.finished.append(latents.cpu())
    film.window, film.row, film.latents, film.solver_state = next_window, 0, None, None
    film.begin, film.passed, film.carried, film.tail = 0, [], carried, tail
    return WindowDone(window, latents)


def _held(film: Film, window: Window, latents: Tensor) -> Tensor:
    """The window with the colours of its own latents held to those of its sequence's first one."""
    given, own = latents.tensor_split([window.repeated], dim=2)
    if not film.plan.continues(window) or film.reference is None:
        film.reference = statistics(own)
    elif film.plan.anchor:
        own = anchored(own, film.reference, film.plan.anchor)
        latents = torch.cat([given, own], dim=2)
    return latents


def _given_latents(film: Film, window: Window) -> Tensor:
    """The window's latents with what is given in its place and zeros elsewhere."""
    given, shown = film.conditions, window.length + window.end
    latents = torch.zeros(1, CHANNELS, shown, *film.plan.latent_size)
    if window.prefix:
        prefix = film.carried if window.repeated else given.start
        assert prefix is not None
        latents[:, :, : window.prefix] = prefix.to(latents)
    for place in window.pictures:
        latents[:, :, place : place + 1] = given.pictures[window.start + place].to(latents)
    if window.end:
        behind = given.behind if film.carried is None or window.repeated else film.carried
        latents[:, :, window.length :] = behind.to(latents)
    return latents


def _with_noise(film: Film, window: Window, fresh: Tensor, noise: NoiseSource) -> Tensor:
    """The window's latents with the window's own noise in the frames of `fresh` (F,)."""
    assert film.latents is not None
    latents = film.latents.clone()
    shape = (1, CHANNELS, window.length, *latents.shape[3:])
    places = fresh[: window.length].nonzero()[:, 0]
    drawn = noise.initial(film.window, shape)[:, :, places]
    drawn = begun(film, drawn, places + window.start)
    latents[:, :, places.to(latents.device)] = drawn.to(latents)
    return latents


def film_frames(film: Film, vae: VideoVAE) -> Iterator[Tensor]:
    """All frames of the film in order, (1, 3, n, H, W) in [-1, 1], piece by piece."""
    plan, stream = film.plan, None
    windows = list(zip(plan.windows(), film.finished, strict=False))
    for window, latents in reversed(windows) if plan.backwards else windows:
        start, stop = plan.new_frames(window)
        skip, left = window.skip, stop - start
        if plan.history == "latents" and not plan.backwards:
            # One sequence from cut to cut: the VAE's stream goes on where it stood.
            stream = stream if window.repeated and stream else vae.decode_stream()
            own = denormalize_latents(latents[:, :, window.repeated :])
            pieces: Iterator[Tensor] = map(stream.push, own.split(1, dim=2))
        else:
            pieces = new_frames(vae, latents, window.repeated)
        for piece in pieces:
            shown = piece[:, :, skip : skip + left].clamp(-1, 1)
            skip -= min(skip, piece.shape[2])
            left -= shown.shape[2]
            yield shown
