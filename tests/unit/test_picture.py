"""The plan drawn: what is given is green, what moves is rimmed, noise is bright."""

import pytest
import torch

from skyreels_model.plan import drawing as picture
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.summary import describe_plan
from skyreels_model.schedule.matrix import WindowRows
from skyreels_model.schedule.staircase import Staircase

PLAN = FilmPlan(
    num_frames=25, width=16, height=16, window=17, overlap=9, steps=4, ar_step=2, prefix_noise=0
)


def cell_colours(drawn):
    """Middle pixel of every cell, (R, F, 3)."""
    drawn = drawn[:, picture.MARGIN :, picture.MARGIN :]
    matrices = [PLAN.matrix(w) for w in PLAN.windows()]
    rows, columns = sum(m.rows for m in matrices), 7
    height, width = drawn.shape[1] // rows, drawn.shape[2] // columns
    return drawn[0, height // 2 :: height, width // 2 :: width], (height, width), matrices


def test_cells_show_the_matrix():
    drawn = picture.draw_plan(PLAN)
    assert drawn.shape[0] == 1 and drawn.shape[3] == 3 and drawn.min() >= 0 and drawn.max() <= 1
    colours, (height, width), matrices = cell_colours(drawn)
    first, second = (m.rows for m in matrices)
    assert colours.shape == (first + second, 7, 3)
    assert torch.allclose(colours[0, 4], torch.tensor(picture.NOISE), atol=0.01)
    assert torch.allclose(colours[first - 1, 0], torch.tensor(picture.CLEAN))
    assert torch.allclose(colours[first:, 2:5], torch.tensor(picture.GIVEN))
    assert torch.allclose(colours[:first, 5:], torch.tensor(picture.BACKGROUND))
    corners = drawn[
        0, picture.MARGIN :: height, picture.MARGIN :: width
    ]  # each cell's first pixel, part of its rim
    rimmed = (corners == 1).all(dim=-1)
    assert torch.equal(rimmed[:first, :5], matrices[0].update)
    assert torch.equal(rimmed[first:, 2:], matrices[1].update)
    # Each window in a frame of its own, in the gaps around its cells.
    framed = (drawn[0] == torch.tensor(picture.OUTLINE)).all(dim=-1)
    second = framed[first * height :]
    assert framed[0, : 5 * width].all() and framed[: first * height, 5 * width].all()
    assert second[:, [2 * width, 7 * width]].all() and second[-1, 2 * width :].all()
    assert not framed[0, 5 * width + 1 :].any() and not second[-1, : 2 * width].any()


def test_an_endless_film_is_drawn_in_part():
    plan = FilmPlan(num_frames=4 * 10**6 + 1, steps=100, ar_step=50)
    drawn = picture.draw_plan(plan)
    assert drawn.shape[1] == picture.MAX_ROWS * picture.CELL_HEIGHT + picture.MARGIN


ENORMOUS = {"num_frames": 4_000_001, "window": 1001, "steps": 1000}


@pytest.mark.parametrize(
    "numbers",
    [
        {"ar_step": 1000},
        {"ar_step": 0, "overlap": 997},
        {"ar_step": 100, "block_size": 7},
        {"ar_step": 4, "sliding": True},
    ],
)
def test_an_enormous_plan_makes_only_the_rows_it_draws(numbers, monkeypatch):
    made = []
    part, row = WindowRows.part, Staircase.row

    def counted_part(self, begin, stop):
        matrix = part(self, begin, stop)
        made.append(matrix.rows)
        return matrix

    def counted_row(self, number):
        made.append(1)
        return row(self, number)

    monkeypatch.setattr(WindowRows, "part", counted_part)
    monkeypatch.setattr(Staircase, "row", counted_row)
    plan = FilmPlan(**ENORMOUS, **numbers)
    drawn = picture.draw_plan(plan)
    assert plan.total_rows() > 10**6 or not plan.ar_step
    assert sum(made) <= picture.MAX_ROWS + 1
    assert drawn.shape[2] <= picture.MAX_WIDTH + picture.MARGIN


def test_windows_that_find_no_room_are_left_out():
    plan = FilmPlan(num_frames=3001, window=1001, steps=2)
    drawn = picture.draw_plan(plan)
    assert drawn.shape[1] == 2 * picture.CELL_HEIGHT + picture.MARGIN


def test_the_summary_of_a_sliding_film_walks_over_none_of_its_latents(monkeypatch):
    plan = FilmPlan(num_frames=4_000_001, ar_step=2, sliding=True)

    def refuse(self, *numbers):
        raise AssertionError("a row was made, or all latents were looked at")

    monkeypatch.setattr(FilmPlan, "rows", refuse)
    monkeypatch.setattr(Staircase, "row", refuse)
    assert f"{plan.total_rows()} model calls" in describe_plan(plan)
