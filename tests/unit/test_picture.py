"""The plan drawn: what is given is green, what moves is rimmed, noise is bright."""

import torch

from skyreels_model.plan import drawing as picture
from skyreels_model.plan.film_plan import FilmPlan

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
