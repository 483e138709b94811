"""One endless sequence: an asynchronous staircase slides over the film, without seams.

Finished frames stay in view as clean context until the staircase has moved on, so no window ever
continues another, and nothing goes through the VAE. Two things are as the model was not trained:
its rotary positions start again in every view, and a view's first latent stands for four frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..grid import CHANNELS
from ..plan.windows import Window
from ..schedule.matrix import levels
from ..solvers import SOLVERS
from .film import Film, RowDone, Velocity
from .noise import NoiseSource
from .window import ask_model, lay_over_source, noise_given, send_row


def slide(
    film: Film, velocity: Velocity, noise: NoiseSource, device: torch.device | str = "cpu"
) -> Iterator[RowDone]:
    """Do the rows that are left of a sequence; only the view is held on `device`.

    Source: the sliding window of SkyworkAI/SkyReels-V2's `generate_timestep_matrix`, which its
    pipelines never use.
    """
    plan, window = film.plan, film.plan.window_at(film.window)
    schedule, staircase = plan.schedule(), plan.staircase(window)
    solver, table = SOLVERS[film.solver](schedule.sigmas, device), levels(schedule.timesteps)
    if film.latents is None:
        film.latents = torch.zeros(1, CHANNELS, 0, *plan.latent_size, device=device)
        film.solver_state = solver.start(film.latents)
    assert film.solver_state is not None
    film.rows = staircase.rows
    while film.row < staircase.rows:
        row = staircase.row(film.row)
        _move_view(film, window, row.start, row.stop, noise)
        for latent in (row.fresh.nonzero()[:, 0] + row.start).tolist():
            place = slice(latent - row.start, latent - row.start + 1)
            film.latents[:, :, place] = _draw_latent(film, window, latent, noise)
        step = (row.index - 1).clamp(0, schedule.steps - 1)
        sigmas, frame = schedule.sigmas[step], int(row.update.nonzero()[0])
        film.begin_row(row.index, row.update, row.fresh)
        timesteps = table[row.index]
        first = max(window.prefix - row.start, 0)
        last = max(row.stop - window.length, 0) if plan.following else 0
        timesteps[:first] = timesteps[len(timesteps) - last :] = plan.prefix_noise
        x = film.latents
        shown = noise_given(film, first, last, plan.prefix_noise, noise)
        t, step, moves = send_row(device, timesteps, step, row.update)
        v = ask_model(film, velocity, shown, t[None])
        drawn = None
        if solver.stochastic:
            drawn = noise.renoise(film.window, film.row, tuple(x.shape)).to(x)
        film.latents = solver.step(film.solver_state, x, v, step, moves.bool(), drawn)
        film.row += 1
        one = slice(frame, frame + 1)
        denoised = x[:, :, one] - float(sigmas[frame]) * v[:, :, one]
        yield RowDone(window, film.row - 1, staircase.rows, frame, denoised, film.skipped)


def _move_view(film: Film, window: Window, start: int, stop: int, noise: NoiseSource) -> None:
    """Show latents [start, stop): what the view leaves is kept on the CPU, what comes is noise."""
    assert film.latents is not None and film.solver_state is not None
    leaving, end = start - film.begin, film.begin + film.latents.shape[2]
    coming = [_enter_latent(film, window, latent, noise) for latent in range(end, stop)]
    if not coming and not leaving:
        return
    nothing = torch.zeros(1, CHANNELS, 0, *film.plan.latent_size)
    entered = torch.cat([nothing, *coming], dim=2).to(film.latents)
    latents = torch.cat([film.latents, entered], dim=2)
    history = film.solver_state.history
    for name, past in history.items():
        history[name] = torch.cat([past, torch.zeros_like(entered)], dim=2)[:, :, leaving:]
    if leaving:
        # A copy, or on the CPU it would keep all of the view.
        film.passed.append(latents[:, :, :leaving].to("cpu", copy=True))
    film.begin, film.latents = start, latents[:, :, leaving:]


def _enter_latent(film: Film, window: Window, latent: int, noise: NoiseSource) -> Tensor:
    """A latent of the sequence as it is before its first step, (1, C, 1, h, w)."""
    given = film.conditions
    if latent < window.prefix:
        assert given.start is not None
        return given.start[:, :, latent : latent + 1].float().cpu()
    if latent in window.pictures:
        return given.pictures[window.start + latent].float().cpu()
    if latent >= window.length:
        place = latent - window.length
        return given.after[:, :, place : place + 1].float().cpu()
    return _draw_latent(film, window, latent, noise)


def _draw_latent(film: Film, window: Window, latent: int, noise: NoiseSource) -> Tensor:
    """A latent's noise, its own whatever the blocks and the film's length, over any source."""
    place = window.start + latent
    drawn = noise.initial(place, (1, CHANNELS, 1, *film.plan.latent_size))
    return lay_over_source(film, drawn, torch.tensor([place]))
