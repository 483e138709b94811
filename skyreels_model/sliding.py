"""One endless sequence: an asynchronous staircase slides over the film, without seams.

Finished frames stay in view as clean context until the staircase has moved on, so no window ever
continues another, and nothing goes through the VAE. Two things are as the model was not trained:
its rotary positions begin anew at every view, and a view's first latent stands for four frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .film import CHANNELS, Film, NoiseSource, RowDone, Velocity, begun, noised_prefix
from .schedule import levels
from .solvers import SOLVERS


def slide(
    film: Film, velocity: Velocity, noise: NoiseSource, device: torch.device | str = "cpu"
) -> Iterator[RowDone]:
    """Do the rows that are left of a sliding film; only the view is held on `device`.

    Source: the sliding window of SkyworkAI/SkyReels-V2's `generate_timestep_matrix`, which its
    pipelines never use.
    """
    plan, window = film.plan, film.plan.window_at(film.window)
    schedule, staircase = plan.schedule(), plan.staircase()
    solver, table = SOLVERS[film.solver](schedule.sigmas, device), levels(schedule.timesteps)
    if film.latents is None:
        film.latents = torch.zeros(1, CHANNELS, 0, *plan.latent_size, device=device)
        film.solver_state = solver.start(film.latents)
    assert film.solver_state is not None
    while film.row < staircase.rows:
        row = film.row
        _move_view(film, *staircase.view(row), noise)
        index = staircase.index(row)  # (F,)
        update = (index >= 1) & (index <= schedule.steps)
        step = (index - 1).clamp(0, schedule.steps - 1)
        sigmas, frame = schedule.sigmas[step], int(update.nonzero()[0])
        film.sigma = float(sigmas[update].max())
        timesteps, given = table[index], max(plan.start - film.begin, 0)
        timesteps[:given] = plan.prefix_noise
        x = film.latents
        shown = noised_prefix(film, given, plan.prefix_noise, noise)
        v = velocity(shown, timesteps[None].to(device))
        drawn = noise.renoise(0, row, tuple(x.shape)).to(x) if solver.stochastic else None
        film.latents = solver.step(
            film.solver_state, x, v, step.to(device), update.to(device), drawn
        )
        film.row += 1
        one = slice(frame, frame + 1)
        denoised = x[:, :, one] - float(sigmas[frame]) * v[:, :, one]
        yield RowDone(window, row, staircase.rows, frame, denoised)


def _move_view(film: Film, start: int, stop: int, noise: NoiseSource) -> None:
    """Show latents [start, stop): what is left behind is kept on the CPU, what comes is noise."""
    assert film.latents is not None and film.solver_state is not None
    leaving, end = start - film.begin, film.begin + film.latents.shape[2]
    coming = _entering(film, end, stop, noise).to(film.latents)
    latents = torch.cat([film.latents, coming], dim=2)
    history = film.solver_state.history
    for name, past in history.items():
        history[name] = torch.cat([past, torch.zeros_like(coming)], dim=2)[:, :, leaving:]
    if leaving:
        film.passed.append(latents[:, :, :leaving].cpu())
    film.begin, film.latents = start, latents[:, :, leaving:]


def _entering(film: Film, begin: int, stop: int, noise: NoiseSource) -> Tensor:
    """Latents [begin, stop) as they are before their first step, (1, C, n, h, w)."""
    size, given = film.plan.latent_size, film.conditions.start
    parts = [torch.zeros(1, CHANNELS, 0, *size)]
    if given is not None and begin < film.plan.start:
        parts.append(given[:, :, begin:stop].float().cpu())
    # Each latent has noise of its own, whatever the blocks and the film's length.
    for latent in range(max(begin, film.plan.start), stop):
        drawn = noise.initial(latent, (1, CHANNELS, 1, *size))
        parts.append(begun(film, drawn, torch.tensor([latent])))
    return torch.cat(parts, dim=2)
