"""The plan of a film as a picture: noise level of every latent frame in every model call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedule.flow import TRAIN_TIMESTEPS
from ..schedule.matrix import levels
from .film_plan import FilmPlan
from .windows import Window

CELL_HEIGHT = 6
CELL_WIDTHS = (6, 40)
ASPECT, MAX_WIDTH = 1.5, 1600
MAX_ROWS = 400
BACKGROUND = (0.11, 0.11, 0.13)
CLEAN, NOISE = (0.13, 0.16, 0.36), (0.99, 0.86, 0.35)
GIVEN = (0.25, 0.62, 0.38)
RIM = (1.0, 1.0, 1.0)
OUTLINE = (0.4, 0.72, 1.0)
MARGIN = 1  # px


@dataclass(frozen=True)
class Room:
    """How much of a plan is drawn, at most."""

    windows: int = 4
    rows: int = MAX_ROWS
    columns: int = 400


PICTURE = Room()


@dataclass(frozen=True)
class Cells:
    """A drawing in cells, (R, F) each, and the windows in it.

    levels: noise from 0 to 1. shown: whether there is a cell at all. given: by another window or by
    a picture. moved: by the model call. A window is (top, bottom, left, right), the latter ones
    exclusive.
    """

    levels: Tensor
    shown: Tensor
    given: Tensor
    moved: Tensor
    windows: list[tuple[int, int, int, int]]


def draw_plan(plan: FilmPlan) -> Tensor:
    """The first windows to be made, at most 400 rows of them, (1, H, W, 3) in 0..1.

    A column per latent frame of the film, a row per model call. From dark (clean) to bright
    (noise); green where the frame is given, by another window or by a picture; rimmed where it is
    being moved; each window outlined.
    """
    return _magnify(plan_cells(plan))[None]


def plan_cells(plan: FilmPlan, room: Room = PICTURE) -> Cells:
    """The first windows to be made, or the first rows of a sliding film, that find room."""
    return _sliding_cells(plan, room) if plan.sliding else _window_cells(plan, room)


def count_drawn(plan: FilmPlan, room: Room = PICTURE) -> int:
    """How many windows the drawing shows, the last of them perhaps in part."""
    rows = 0
    for number, (window, _) in enumerate(_spans(plan, room)):
        if rows >= room.rows:
            return number
        rows += plan.rows(window).count
    return number + 1


def _window_cells(plan: FilmPlan, room: Room) -> Cells:
    spans = _spans(plan, room)
    first, last = min(span.start for _, span in spans), max(span.stop for _, span in spans)
    rows = sum(plan.rows(window).count for window, _ in spans)
    cells = _make_cells(min(rows, room.rows), last - first)
    top = 0
    for window, span in spans:
        part = plan.rows(window).part(0, room.rows - top)
        if not part.rows:
            break
        bottom, left, right = top + part.rows, span.start - first, span.stop - first
        done = part.index > plan.steps
        place = slice(top, bottom), slice(left, right)
        cells.levels[place] = part.timesteps / TRAIN_TIMESTEPS
        cells.shown[place] = True
        cells.given[place] = done[:1] & done
        cells.moved[place] = part.update
        cells.windows.append((top, bottom, left, right))
        top = bottom
    return cells


def _spans(plan: FilmPlan, room: Room) -> list[tuple[Window, range]]:
    """The first windows that find room side by side, and the latents that each shows."""
    found: list[tuple[Window, range]] = []
    for index in range(min(plan.num_windows, room.windows)):
        window = plan.window_at(index)
        span = range(window.start, window.start + window.length + window.end)
        ends = [end for _, one in [*found, (window, span)] for end in (one.start, one.stop)]
        if found and max(ends) - min(ends) > room.columns:
            break
        found.append((window, span))
    return found


def _sliding_cells(plan: FilmPlan, room: Room) -> Cells:
    """The first rows of a sliding film's first sequence."""
    index, shown, moved = plan.staircase(plan.window_at(0)).table(room.rows, room.columns)
    given = shown & (index > plan.steps) & (moved.long().cumsum(dim=0) == 0)
    level = levels(plan.schedule().timesteps)[index] / TRAIN_TIMESTEPS
    return Cells(level, shown, given, moved, [])


def _make_cells(rows: int, columns: int) -> Cells:
    shown, given, moved = (torch.zeros(rows, columns, dtype=torch.bool) for _ in range(3))
    return Cells(torch.zeros(rows, columns), shown, given, moved, [])


def _colours(cells: Cells) -> Tensor:
    """The colour of each cell, (R, F, 3)."""
    level = cells.levels[..., None]
    colour = torch.tensor(CLEAN) * (1 - level) + torch.tensor(NOISE) * level
    colour = torch.where(cells.given[..., None], torch.tensor(GIVEN), colour)
    return torch.where(cells.shown[..., None], colour, torch.tensor(BACKGROUND))


def _magnify(cells: Cells) -> Tensor:
    """Cells to boxes of pixels with a gap between them, (H, W, 3); the outlines lie in the gaps."""
    rows, columns = cells.levels.shape
    colours = _colours(cells)
    width = min(max(round(rows * CELL_HEIGHT * ASPECT / columns), CELL_WIDTHS[0]), CELL_WIDTHS[1])
    box = CELL_HEIGHT, min(width, max(MAX_WIDTH // columns, 3))
    picture = torch.empty(rows * box[0] + MARGIN, columns * box[1] + MARGIN, 3)
    picture[:] = torch.tensor(BACKGROUND)
    # A view of the picture by its boxes, (R, height, F, width, 3); the last line of each is gap.
    boxes = picture[MARGIN:, MARGIN:].unflatten(1, (columns, box[1])).unflatten(0, (rows, box[0]))
    boxes[:, :-1, :, :-1] = colours[:, None, :, None]
    edges = torch.where(cells.moved[..., None], torch.tensor(RIM), colours)  # (R, F, 3)
    for line in (0, box[0] - 2):
        boxes[:, line, :, :-1] = edges[:, :, None]
    for line in (0, box[1] - 2):
        boxes[:, :-1, :, line] = edges[:, None]
    for top, bottom, left, right in cells.windows:
        y, x = (top * box[0], bottom * box[0]), (left * box[1], right * box[1])
        picture[y[0] : y[1] + 1, x] = torch.tensor(OUTLINE)
        picture[y, x[0] : x[1] + 1] = torch.tensor(OUTLINE)
    return picture
