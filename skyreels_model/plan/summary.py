"""The numbers of a plan, for people."""

from __future__ import annotations

from .drawing import count_drawn
from .film_plan import FilmPlan
from .resting import most_finished, share_computed


def describe_plan(plan: FilmPlan) -> str:
    """Length, windows, steps, cost and what is given, a line each."""
    calls = plan.total_rows()
    mode = f"asynchronous (ar_step {plan.ar_step})" if plan.ar_step else "synchronous"
    noise = "sigmas as given" if plan.sigmas else f"shift {plan.shift:g}"
    blocks = f", blocks of {plan.block_size}" if plan.ar_step else ""
    lines = [
        f"{plan.num_frames} frames = {plan.seconds:.2f} s at {plan.fps} fps, "
        f"{plan.width} x {plan.height}",
        _describe_windows(plan),
        f"{mode}{blocks}, {plan.steps} steps, {noise}",
        f"{calls} model calls, or {2 * calls} with guidance (cfg above 1)",
        *_describe_idle(plan),
        *_describe_finished(plan),
        *_describe_given(plan),
        *_describe_drawn(plan),
    ]
    return "\n".join(lines)


def describe_shortly(plan: FilmPlan) -> str:
    """The plan in a line: length, windows, cost."""
    windows = f"{plan.num_windows} window{'s' * (plan.num_windows > 1)}"
    parts = "one sequence" if plan.sliding and plan.num_windows == 1 else windows
    calls = plan.total_rows()
    return (
        f"{describe_seconds(plan.seconds)}, {plan.num_frames} frames, {parts}, "
        f"{calls} model call{'s' * (calls > 1)}"
    )


def describe_seconds(seconds: float) -> str:
    """A length such as 4.04 s, 1 min 20 s or 1 h 0 min 5 s."""
    if seconds < 60:
        return f"{seconds:.4g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def _describe_windows(plan: FilmPlan) -> str:
    seconds = plan.window / plan.fps
    if plan.sliding:
        return f"one sequence, in view at once: {plan.window} frames ({seconds:.2f} s)"
    if plan.num_windows == 1:
        return "1 window"
    size = f"{plan.num_windows} windows of up to {plan.window} frames ({seconds:.2f} s)"
    through = f"through {plan.history}, with noise {plan.prefix_noise}"
    if plan.backwards:
        return f"{size}, made from the last to the first, each leading into the next {through}"
    return f"{size}, each sharing {plan.overlap} with the previous one {through}"


def _describe_idle(plan: FilmPlan) -> list[str]:
    """What leaving out frames that wait comes to."""
    if plan.idle_frames != "left_out":
        return []
    if not plan.ar_step:
        return ["idle_frames left_out: no effect, for no frame waits where ar_step is 0"]
    if not plan.leaves_out:
        return ["idle_frames left_out: no effect, for frames that wait show the source film"]
    if plan.sliding:
        return ["idle_frames left_out: frames that wait at the beginning are not computed"]
    share = plan.share_shown()
    return [
        f"idle_frames left_out: {share:.0%} of the frames are computed in these model calls; "
        f"GPU memory must hold the last calls of a window, with all of them"
    ]


def _describe_finished(plan: FilmPlan) -> list[str]:
    """What keeping frames at rest comes to."""
    if not plan.keeps_frames:
        return []
    name = f"finished_frames {plan.finished_frames}"
    if not most_finished(plan):
        return [f"{name}: no effect, for no frame is finished before the others"]
    again = f"again every {plan.refresh_every} calls"
    if plan.sliding:
        return [f"{name}: finished frames are computed once, and {again}"]
    return [
        f"{name}: {share_computed(plan):.0%} of the frames are computed in these model calls, "
        f"finished ones {again}"
    ]


def _describe_given(plan: FilmPlan) -> list[str]:
    """What is given, in latent frames; each holds four frames, a start's first one."""
    given = [
        f"{plan.start} at the start" * bool(plan.start),
        f"{len(plan.pictures)} on the way" * bool(plan.pictures),
        "a picture after the end" * plan.end,
        f"{plan.following} of the film that follows" * bool(plan.following),
    ]
    return [f"given latent frames: {', '.join(filter(None, given))}"] if any(given) else []


def _describe_drawn(plan: FilmPlan) -> list[str]:
    """What the picture leaves out."""
    if plan.sliding:
        return []
    drawn = count_drawn(plan)
    if drawn == plan.num_windows:
        return []
    return [f"the picture shows the first {drawn} of {plan.num_windows} windows"]
