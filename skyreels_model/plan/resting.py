"""Frames at rest, given or done, in a film's model calls: how many, and what is left to compute."""

from __future__ import annotations

from .film_plan import SHOWN_AHEAD, FilmPlan


def share_computed(plan: FilmPlan) -> float:
    """Of all frames in all model calls of a plan's windows, those that the model computes."""
    computed = whole = 0
    ahead = SHOWN_AHEAD if plan.leaves_out else None
    every = plan.refresh_every if plan.keeps_frames else 1
    for rows, times in plan.rows_alike:
        whole += times * rows.count * rows.shown
        computed += times * rows.count_computed(ahead, every)
    return computed / whole


def most_finished(plan: FilmPlan) -> int:
    """The most latent frames at rest in a model call: those of which is kept what is known."""
    if plan.sliding:
        widest = max(plan.staircase(window).widest for window, _ in plan.layout.groups())
        return max(widest - plan.block_size, 0)
    most = 0
    for rows, _ in plan.rows_alike:
        last = rows.part(rows.count - 1, rows.count)
        most = max(most, int((~last.update[0]).sum()))
    return most
