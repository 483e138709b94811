"""A plan as plain data, for whoever draws it: when windows, shots and given frames lie, and noise.

Times are frames of the film. Whatever the film's length, there is a bounded number of entries.
"""

from __future__ import annotations

import base64
from typing import Any

from ..grid import TEMPORAL_STRIDE, frame_length
from .drawing import Cells, Room, plan_cells
from .film_plan import FilmPlan
from .windows import Window, picture_frame

MAX_SPANS = 600
ROOM = Room(windows=4, rows=160, columns=200)
# A cell is a byte: its kind or its level, and whether the model call moves it.
EMPTY, GIVEN, LEVELS, MOVED = 0, 1, 62, 64


def outline_plan(plan: FilmPlan) -> dict[str, Any]:
    """The plan as numbers, strings and lists, ready for JSON.

    spans: of each window, or each `every`th of many, [shown, new, stop, end]: from when it shows
    the film, the new frames [new, stop), and to when it shows it; at most 600. shots: [start, stop,
    cut, ease]; at most 600. given: frames given at the start, of what follows, of key images, and
    whether there is an end image. matrix: rows, columns, windows as in `Cells`, and its cells as
    base64, a byte for each: 0 none, 1 given, 2 to 63 noise levels from 0 to 1, and 64 more where
    the call moves it.
    """
    every = -(-plan.num_windows // MAX_SPANS)
    return {
        "frames": plan.num_frames,
        "fps": plan.fps,
        "seconds": plan.seconds,
        "calls": plan.total_rows(),
        "sliding": plan.sliding,
        "windows": plan.num_windows,
        "every": every,
        "spans": [_span(plan, plan.window_at(i)) for i in range(0, plan.num_windows, every)],
        "shots": _shots(plan),
        "given": _given(plan),
        "matrix": _matrix(plan_cells(plan, ROOM)),
    }


def _span(plan: FilmPlan, window: Window) -> list[int]:
    new, stop = plan.new_frames(window)
    shared = frame_length(window.repeated) if window.repeated else 0
    # Windows of a film that is made backwards, and the last of one that leads into another.
    ahead = window.end * TEMPORAL_STRIDE if plan.following or plan.backwards else 0
    return [max(new - shared, 0), new, stop, stop + ahead]


def _shots(plan: FilmPlan) -> list[list[Any]]:
    found: list[list[Any]] = []
    start = 0
    for shot in plan.shots[:MAX_SPANS]:
        found.append([start, start + shot.frames, shot.cut, shot.ease])
        start += shot.frames
    return found


def _given(plan: FilmPlan) -> dict[str, Any]:
    """Where the given frames lie."""
    return {
        "start": frame_length(plan.start) if plan.start else 0,
        "keys": [_frame_of(plan, latent) for latent in plan.pictures[:MAX_SPANS]],
        "end": plan.end,
        "following": plan.following * TEMPORAL_STRIDE,
    }


def _frame_of(plan: FilmPlan, latent: int) -> int:
    """The frame of the film for which a picture stands in a latent's place."""
    run = next(run for run in plan.layout.runs() if latent < run.start + run.latents)
    return run.frame + picture_frame(latent - run.start) - run.skip


def _matrix(cells: Cells) -> dict[str, Any]:
    # Outside of PyTorch, whose threads may take longer to begin than this takes.
    given, shown, moved = (one.numpy() for one in (cells.given, cells.shown, cells.moved))
    kinds = (cells.levels.numpy() * (LEVELS - 1)).round().astype("uint8") + 2
    kinds[given] = GIVEN
    kinds[~shown] = EMPTY
    kinds[moved] += MOVED
    rows, columns = kinds.shape
    return {
        "rows": rows,
        "columns": columns,
        "windows": cells.windows,
        "cells": base64.b64encode(kinds.tobytes()).decode(),
    }
