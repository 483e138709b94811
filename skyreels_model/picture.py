"""The plan of a film as a picture: noise level of every latent frame in every model call."""

from __future__ import annotations

import torch
from torch import Tensor

from .plan import FilmPlan
from .schedule import TRAIN_TIMESTEPS, levels

CELL_HEIGHT = 6
CELL_WIDTHS = (6, 40)
ASPECT = 1.5
MAX_WINDOWS, MAX_ROWS = 4, 400
BACKGROUND = (0.11, 0.11, 0.13)
CLEAN, NOISE = (0.13, 0.16, 0.36), (0.99, 0.86, 0.35)
GIVEN = (0.25, 0.62, 0.38)
RIM = (1.0, 1.0, 1.0)


def draw_plan(plan: FilmPlan) -> Tensor:
    """The first windows of a film, at most 400 rows of them, (1, H, W, 3) in 0..1.

    A column per latent frame of the film, a row per model call. From dark (clean) to bright
    (noise); green where the frame is given, by the window before or by a picture; rimmed where it
    is being moved.
    """
    cells, rims = _sliding_cells(plan) if plan.sliding else _window_cells(plan)
    return _magnified(cells[:MAX_ROWS], rims[:MAX_ROWS])[None]


def _window_cells(plan: FilmPlan) -> tuple[Tensor, Tensor]:
    """Colours (R, F, 3) and rims (R, F) of the first windows."""
    windows = [plan.window_at(i) for i in range(min(plan.num_windows, MAX_WINDOWS))]
    matrices = [plan.matrix(window) for window in windows]
    columns = windows[-1].start + windows[-1].length + windows[-1].end
    cells = torch.tensor(BACKGROUND).repeat(sum(m.rows for m in matrices), columns, 1)
    rims = torch.zeros(cells.shape[:2], dtype=torch.bool)
    top = 0
    for window, matrix in zip(windows, matrices, strict=True):
        done = matrix.index > plan.steps
        stop = window.start + window.length + window.end
        rows, shown = slice(top, top + matrix.rows), slice(window.start, stop)
        cells[rows, shown] = _colours(matrix.timesteps, done[:1] & done)
        rims[rows, shown] = matrix.update
        top += matrix.rows
    return cells, rims


def _sliding_cells(plan: FilmPlan) -> tuple[Tensor, Tensor]:
    """Colours (R, F, 3) and rims (R, F) of the first rows of a sliding film."""
    staircase, table = plan.staircase(), levels(plan.schedule().timesteps)
    rows = min(staircase.rows, MAX_ROWS)
    columns = staircase.view(rows - 1)[1]
    cells = torch.tensor(BACKGROUND).repeat(rows, columns, 1)
    rims = torch.zeros(cells.shape[:2], dtype=torch.bool)
    for row in range(rows):
        shown, index = slice(*staircase.view(row)), staircase.index(row)
        given = torch.arange(columns)[shown] < plan.start
        cells[row, shown] = _colours(table[index], given)
        rims[row, shown] = (index >= 1) & (index <= plan.steps)
    return cells, rims


def _colours(timesteps: Tensor, given: Tensor) -> Tensor:
    """Timesteps and given places (..., F) -> (..., F, 3)."""
    level = (timesteps / TRAIN_TIMESTEPS)[..., None]
    colour = torch.tensor(CLEAN) * (1 - level) + torch.tensor(NOISE) * level
    return torch.where(given[..., None], torch.tensor(GIVEN), colour)


def _magnified(cells: Tensor, rims: Tensor) -> Tensor:
    """Cells (R, F, 3) to boxes of pixels with a gap between them; rimmed where asked."""
    rows, columns = rims.shape
    width = round(rows * CELL_HEIGHT * ASPECT / columns)
    box = CELL_HEIGHT, min(max(width, CELL_WIDTHS[0]), CELL_WIDTHS[1])
    picture = _repeated(cells, box)
    gap, rim = torch.zeros(box, dtype=torch.bool), torch.ones(box, dtype=torch.bool)
    gap[-1], gap[:, -1] = True, True
    rim[1:-2, 1:-2] = False
    picture[rim.repeat(rows, columns) & _repeated(rims, box)] = torch.tensor(RIM)
    picture[gap.repeat(rows, columns)] = torch.tensor(BACKGROUND)
    return picture


def _repeated(cells: Tensor, box: tuple[int, int]) -> Tensor:
    return cells.repeat_interleave(box[0], 0).repeat_interleave(box[1], 1)
