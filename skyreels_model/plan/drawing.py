"""The plan of a film as a picture: noise level of every latent frame in every model call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..schedule.flow import TRAIN_TIMESTEPS
from ..schedule.matrix import levels
from .film_plan import FilmPlan

CELL_HEIGHT = 6
CELL_WIDTHS = (6, 40)
ASPECT = 1.5
MAX_WINDOWS, MAX_ROWS = 4, 400
BACKGROUND = (0.11, 0.11, 0.13)
CLEAN, NOISE = (0.13, 0.16, 0.36), (0.99, 0.86, 0.35)
GIVEN = (0.25, 0.62, 0.38)
RIM = (1.0, 1.0, 1.0)
OUTLINE = (0.4, 0.72, 1.0)
MARGIN = 1  # px


@dataclass(frozen=True)
class Cells:
    """A drawing in cells: colours (R, F, 3), rims (R, F), and the windows in it.

    A window is (top, bottom, left, right), the latter ones exclusive.
    """

    colours: Tensor
    rims: Tensor
    windows: list[tuple[int, int, int, int]]


def draw_plan(plan: FilmPlan) -> Tensor:
    """The first windows to be made, at most 400 rows of them, (1, H, W, 3) in 0..1.

    A column per latent frame of the film, a row per model call. From dark (clean) to bright
    (noise); green where the frame is given, by another window or by a picture; rimmed where it is
    being moved; each window outlined.
    """
    return _magnified(_sliding_cells(plan) if plan.sliding else _window_cells(plan))[None]


def _window_cells(plan: FilmPlan) -> Cells:
    windows = [plan.window_at(i) for i in range(min(plan.num_windows, MAX_WINDOWS))]
    matrices = [plan.matrix(window) for window in windows]
    first = min(window.start for window in windows)
    columns = max(window.start + window.length + window.end for window in windows) - first
    cells = _empty(min(sum(m.rows for m in matrices), MAX_ROWS), columns)
    top = 0
    for window, matrix in zip(windows, matrices, strict=True):
        done = matrix.index > plan.steps
        left = window.start - first
        right, bottom = left + matrix.index.shape[1], min(top + matrix.rows, MAX_ROWS)
        if top == bottom:
            break
        rows, shown = slice(top, bottom), slice(left, right)
        colours = _colours(matrix.timesteps, done[:1] & done)
        cells.colours[rows, shown] = colours[: bottom - top]
        cells.rims[rows, shown] = matrix.update[: bottom - top]
        cells.windows.append((top, bottom, left, right))
        top = bottom
    return cells


def _sliding_cells(plan: FilmPlan) -> Cells:
    """The first rows of a sliding film's first sequence."""
    staircase, table = plan.staircase(plan.window_at(0)), levels(plan.schedule().timesteps)
    rows = [staircase.row(row) for row in range(min(staircase.rows, MAX_ROWS))]
    cells = _empty(len(rows), rows[-1].stop)
    begun = torch.zeros(rows[-1].stop, dtype=torch.bool)
    for place, row in enumerate(rows):
        shown = slice(row.start, row.stop)
        begun[shown] |= row.update
        given = (row.index > plan.steps) & ~begun[shown]
        cells.colours[place, shown] = _colours(table[row.index], given)
        cells.rims[place, shown] = row.update
    return cells


def _empty(rows: int, columns: int) -> Cells:
    colours = torch.tensor(BACKGROUND).repeat(rows, columns, 1)
    return Cells(colours, torch.zeros(rows, columns, dtype=torch.bool), [])


def _colours(timesteps: Tensor, given: Tensor) -> Tensor:
    """Timesteps and given places (..., F) -> (..., F, 3)."""
    level = (timesteps / TRAIN_TIMESTEPS)[..., None]
    colour = torch.tensor(CLEAN) * (1 - level) + torch.tensor(NOISE) * level
    return torch.where(given[..., None], torch.tensor(GIVEN), colour)


def _magnified(cells: Cells) -> Tensor:
    """Cells to boxes of pixels with a gap between them, (H, W, 3); the outlines lie in the gaps."""
    rows, columns = cells.rims.shape
    width = round(rows * CELL_HEIGHT * ASPECT / columns)
    box = CELL_HEIGHT, min(max(width, CELL_WIDTHS[0]), CELL_WIDTHS[1])
    picture = _repeated(cells.colours, box)
    gap, rim = torch.zeros(box, dtype=torch.bool), torch.ones(box, dtype=torch.bool)
    gap[-1], gap[:, -1] = True, True
    rim[1:-2, 1:-2] = False
    picture[rim.repeat(rows, columns) & _repeated(cells.rims, box)] = torch.tensor(RIM)
    picture[gap.repeat(rows, columns)] = torch.tensor(BACKGROUND)
    framed = torch.tensor(BACKGROUND).repeat(
        picture.shape[0] + MARGIN, picture.shape[1] + MARGIN, 1
    )
    framed[MARGIN:, MARGIN:] = picture
    for top, bottom, left, right in cells.windows:
        y, x = slice(top * box[0], bottom * box[0] + 1), slice(left * box[1], right * box[1] + 1)
        framed[y, [x.start, x.stop - 1]] = torch.tensor(OUTLINE)
        framed[[y.start, y.stop - 1], x] = torch.tensor(OUTLINE)
    return framed


def _repeated(cells: Tensor, box: tuple[int, int]) -> Tensor:
    return cells.repeat_interleave(box[0], 0).repeat_interleave(box[1], 1)
