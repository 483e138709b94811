"""The rows of one window, from noise to latents."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..grid import CHANNELS
from ..plan.windows import Window
from ..schedule.flow import TRAIN_TIMESTEPS
from ..solvers import SOLVERS
from .film import Film, RowDone, Velocity
from .noise import NoiseSource


def lay_over_source(film: Film, noise: Tensor, latents: Tensor) -> Tensor:
    """Noise (1, C, n, h, w) for these latents of the film (n,), laid over any source."""
    source = film.conditions.source
    if source is None:
        return noise
    sigma = float(film.plan.schedule().sigmas[0])
    return (1 - sigma) * source[:, :, latents].to(noise) + sigma * noise


def noise_given(film: Film, first: int, last: int, level: int, noise: NoiseSource) -> Tensor:
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


def ask_model(film: Film, velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """The velocity (1, C, F, h, w) of the row at work; 0 for frames that the model is not shown."""
    assert film.levels is not None
    visible, frames = len(film.levels.sigmas), x.shape[2]
    if visible == frames:
        return velocity(x, t)
    v = velocity(x[:, :, :visible].contiguous(), t[:, :visible])
    return torch.cat([v, torch.zeros_like(x[:, :, visible:])], dim=2)


def send_row(device: torch.device | str, *numbers: Tensor) -> tuple[Tensor, ...]:
    """What a row has for each latent, (F,) each, as int64 on the device, in one transfer."""
    row = torch.stack([each.long() for each in numbers])
    # CUDA has read ordinary memory before the call returns, and is not waited for.
    return row.to(device, non_blocking=torch.device(device).type == "cuda").unbind()


def denoise_window(
    film: Film, velocity: Velocity, noise: NoiseSource, device: torch.device | str = "cpu"
) -> Iterator[RowDone]:
    """Do the rows that are left of the film's current window."""
    plan, window = film.plan, film.plan.window_at(film.window)
    schedule, rows = plan.schedule(), plan.rows(window)
    solver = SOLVERS[film.solver](schedule.sigmas, device)
    if film.latents is None:
        film.latents = _place_given(film, window).to(device)
        film.solver_state = solver.start(film.latents)
    assert film.solver_state is not None
    film.rows = rows.count
    # A picture after the film stays clean.
    last = window.end if plan.following or plan.kept_end is not None else 0
    while film.row < rows.count:
        row, one = film.row, rows.part(film.row, film.row + 1)
        if one.fresh.any():
            film.latents = _lay_noise(film, window, one.fresh[0], noise)
        x = film.latents
        # Frames not being moved get the nearest legal step; the update mask leaves them alone.
        step = (one.index[0] - 1).clamp(0, schedule.steps - 1)
        sigmas, frame = schedule.sigmas[step], int(one.update[0].nonzero()[0])
        film.begin_row(one.index[0], one.update[0], one.fresh[0])
        timesteps = one.timesteps
        timesteps[:, : window.prefix] = plan.prefix_noise
        timesteps[:, timesteps.shape[1] - last :] = plan.prefix_noise
        shown = noise_given(film, window.prefix, last, plan.prefix_noise, noise)
        t, step, moves = send_row(device, timesteps[0], step, one.update[0])
        v = ask_model(film, velocity, shown, t[None])
        drawn = noise.renoise(film.window, row, tuple(x.shape)).to(x) if solver.stochastic else None
        film.latents = solver.step(film.solver_state, x, v, step, moves.bool(), drawn)
        film.row += 1
        moving = slice(frame, frame + 1)
        denoised = x[:, :, moving] - float(sigmas[frame]) * v[:, :, moving]
        yield RowDone(window, row, rows.count, frame, denoised, film.skipped)


def _place_given(film: Film, window: Window) -> Tensor:
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
        latents[:, :, window.length :] = shown_after(film, window).to(latents)
    return latents


def shown_after(film: Film, window: Window) -> Tensor:
    """The latents that are shown after a window's own, (1, C, n, h, w)."""
    return film.conditions.after if film.carried is None or window.repeated else film.carried


def _lay_noise(film: Film, window: Window, fresh: Tensor, noise: NoiseSource) -> Tensor:
    """The window's latents with the window's own noise in the frames of `fresh` (F,)."""
    assert film.latents is not None
    latents = film.latents.clone()
    shape = (1, CHANNELS, window.length, *latents.shape[3:])
    places = fresh[: window.length].nonzero()[:, 0]
    drawn = noise.initial(film.window, shape)[:, :, places]
    drawn = lay_over_source(film, drawn, places + window.start)
    latents[:, :, places.to(latents.device)] = drawn.to(latents)
    return latents
