"""Which shots' prompts a part of a window shows, and how far each has faded in."""

from __future__ import annotations

import torch
from torch import Tensor

from ..grid import TEMPORAL_STRIDE
from .film_plan import FilmPlan
from .windows import Window


def find_prompts(
    plan: FilmPlan, window: Window, begin: int, count: int
) -> list[tuple[int, Tensor | None]]:
    """The shots whose prompts the latents [begin, begin + count) of a window show.

    Each lies over the ones before it with a share of every latent (F,); the first has none.
    A window has its own shot's prompt, or the one before it as well while that fades out. In
    one sequence, in which several shots are in view at once, each latent has its own shot's.
    """
    latents = torch.arange(begin, begin + count) + window.start
    if not plan.sliding:
        share = _share(plan, window.shot, latents)
        if plan.parts[window.shot].fresh or bool((share[window.repeated :] == 1).all()):
            return [(window.shot, None)]
        return [(window.shot - 1, None), (window.shot, share)]
    first = plan.shot_at(int(latents[0]))
    while not plan.parts[first].fresh and _share(plan, first, latents[:1]) < 1:
        first -= 1
    last = plan.shot_at(min(int(latents[-1]), window.start + window.length - 1))
    over = [(shot, _share(plan, shot, latents)) for shot in range(first + 1, last + 1)]
    return [(first, None), *over]


def _share(plan: FilmPlan, shot: int, latents: Tensor) -> Tensor:
    """How far a shot's prompt has faded in at these latents of the film, 0 to 1."""
    ease = plan.shots[shot].ease if plan.shots else 0
    into = latents - plan.parts[shot].begin  # latents into the shot
    if not ease:
        return (into >= 0).float()
    return ((into + 0.5) * TEMPORAL_STRIDE / ease).clamp(0, 1)
