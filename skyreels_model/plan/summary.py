"""The numbers of a plan, for people."""

from __future__ import annotations

from ..grid import latent_length
from .film_plan import FilmPlan


def describe(plan: FilmPlan) -> str:
    """Length, windows, steps, cost and what is given, a line each."""
    last = plan.window_at(plan.num_windows - 1)
    mode = f"asynchronous, ar_step {plan.ar_step}" if plan.ar_step else "synchronous"
    rows = plan.total_rows()
    view = latent_length(plan.window)
    shown = latent_length(plan.overlap)
    if plan.sliding:
        made = f"in one sequence, {view} of them in view"
    elif plan.num_windows > 1:
        if plan.backwards:
            shown, order = plan.following, "made from the last to the first"
        else:
            order = f"the last {last.length}"
        made = (
            f"in {plan.num_windows} windows of {view} ({order}), {shown} of them continued through "
            f"{plan.history}, at noise {plan.prefix_noise}"
        )
    else:
        made = "in 1 window"
    given = [
        f"{plan.start} at the start" * bool(plan.start),
        f"{len(plan.pictures)} on the way" * bool(plan.pictures),
        "a picture after the end" * plan.end,
        f"{plan.following} of the film that follows" * bool(plan.following),
    ]
    lines = [
        f"{plan.num_frames} frames = {plan.seconds:.2f} s at {plan.fps} fps, "
        f"{plan.width} x {plan.height}",
        f"{plan.latent_frames} latent frames {made}",
        f"{mode}, blocks of {plan.block_size}, {plan.steps} steps, "
        + ("sigmas as given" if plan.sigmas else f"shift {plan.shift:g}"),
        f"{rows} model calls: {2 * rows} forward passes with guidance, {rows} without",
    ]
    if any(given):
        lines.append(f"given latent frames: {', '.join(filter(None, given))}")
    return "\n".join(lines)
