"""Given frames, seams and drift: right films of the world pass, and each wrong one is told."""

import dataclasses

import numpy as np
import pytest

from toy import continuity as con
from toy.instruments import find_figures
from toy.world import SCENES, Scene, paint, path, render

SPANS = [(0, 33), (33, 49), (49, 65)]
BORDERS = [33, 49]
# Every name of the world occurs, every background with each colour and each shape.
SOME = SCENES[::9]


def softened(frames: np.ndarray) -> np.ndarray:
    """The mean over 3×3 px."""
    return sum(np.roll(frames, (dy, dx), axis=(1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9


def blurred(frames: np.ndarray) -> np.ndarray:
    """As a VAE leaves them: a soft edge and a little noise."""
    noise = np.random.default_rng(0).normal(0, 0.03, frames.shape)
    return (softened(frames) + noise).astype(np.float32)


spoilt = pytest.mark.parametrize("spoil", [np.asarray, blurred], ids=["clean", "blurred"])
some = pytest.mark.parametrize("scene", SOME, ids=lambda scene: "-".join(vars(scene).values()))


def with_other(scene: Scene, name: str) -> Scene:
    """The scene with another colour, shape, background or direction."""
    names = {getattr(one, name) for one in SCENES} - {getattr(scene, name)}
    return dataclasses.replace(scene, **{name: sorted(names)[0]})


@spoilt
def test_given_frames_of_every_scene_are_recognised(spoil):
    given = np.concatenate([render(s, 1, (i * 5.3, i * 3.1)) for i, s in enumerate(SCENES)])
    errors = con.frame_errors(spoil(given), given)
    assert all(error.ok for error in errors)
    assert max(error.position for error in errors) < 0.3
    assert max(error.colour for error in errors) < 0.06
    assert max(error.background for error in errors) < 0.04


@spoilt
@some
@pytest.mark.parametrize("name", ["colour", "shape", "background"])
def test_a_given_frame_with_another_look_is_told(spoil, scene, name):
    film = spoil(render(with_other(scene, name), 3))
    for error in con.frame_errors(film, render(scene, 3)):
        assert not error.ok
        assert error.same_shape == (name != "shape")
        assert (error.colour > 0.4) == (name == "colour")
        assert (error.background > 0.2) == (name == "background")
        assert error.position < 0.3


@spoilt
@some
def test_the_distance_from_a_given_frame_is_the_shortest_on_the_torus(spoil, scene):
    given = paint(scene, np.array([[1.0, 16.0], [16.0, 16.0], [16.0, 30.5]]))
    film = spoil(paint(scene, np.array([[30.0, 16.0], [19.0, 12.0], [16.0, 1.5]])))
    errors = con.frame_errors(film, given)
    assert [error.position for error in errors] == pytest.approx([3, 5, 3], abs=0.35)
    assert not any(error.ok for error in errors)
    assert all(error.same_shape for error in errors)


def test_a_given_frame_that_shows_nothing_is_told():
    given = render(SCENES[0], 2)
    film = given.copy()
    film[1] = 0.05
    right, empty = con.frame_errors(film, given)
    assert right.ok and not empty.ok and not empty.same_shape
    assert np.isnan([empty.position, empty.colour]).all()


def film_of(scene: Scene, jump: float = 0.0, turn: bool = False, at: int = 33) -> np.ndarray:
    """65 frames that from frame `at` on are `jump` px ahead or go the other way."""
    back = {"right": "left", "left": "right", "up": "down", "down": "up"}[scene.direction]
    steps = [scene.direction] * (at - 1) + [back if turn else scene.direction] * (65 - at)
    centres = path(steps, (5.0, 7.0))
    centres[at:] += np.sign(centres[1] - centres[0]) * jump
    return paint(scene, centres)


@spoilt
@some
def test_smooth_seams_are_as_the_inside(spoil, scene):
    for seam in con.seam_jumps(find_figures(spoil(film_of(scene))), BORDERS):
        for cut in (seam.at_border, seam.inside):
            assert cut.position < 0.5 and cut.velocity < 0.2
            assert cut.colour < 0.02 and cut.background < 0.02


@spoilt
@some
def test_a_jump_at_a_seam_is_measured_at_its_border_alone(spoil, scene):
    figures = find_figures(spoil(film_of(scene, jump=3.0)))
    jumped, smooth = con.seam_jumps(figures, BORDERS)
    assert jumped.at_border.position == pytest.approx(3, abs=0.4)
    assert jumped.inside.position < 0.4 and smooth.at_border.position < 0.5
    assert jumped.at_border.velocity < 0.2 and jumped.at_border.colour < 0.02


@spoilt
@some
def test_a_turn_at_a_seam_is_a_change_of_velocity(spoil, scene):
    figures = find_figures(spoil(film_of(scene, turn=True)))
    turned, smooth = con.seam_jumps(figures, BORDERS)
    assert turned.at_border.velocity == pytest.approx(1.5, abs=0.2)
    # The way there and the way back, drawn on to half a frame before the border.
    assert turned.at_border.position == pytest.approx(0.75, abs=0.3)
    assert turned.inside.velocity < 0.2 and smooth.at_border.velocity < 0.2


@spoilt
@some
def test_a_change_of_colour_at_a_seam_is_measured(spoil, scene):
    frames = film_of(scene) * 0.9
    frames[33:] += 0.1
    stepped, smooth = con.seam_jumps(find_figures(spoil(frames)), BORDERS)
    for field in ("colour", "background"):
        assert getattr(stepped.at_border, field) == pytest.approx(0.1, abs=0.02)
        assert getattr(stepped.inside, field) < 0.02 and getattr(smooth.at_border, field) < 0.02


def test_seams_of_frames_without_a_figure_are_unknown():
    frames = film_of(SCENES[0])
    frames[34] = 0.05
    hidden, smooth = con.seam_jumps(find_figures(frames), BORDERS)
    assert np.isnan(hidden.at_border.position) and np.isnan(hidden.at_border.colour)
    assert hidden.at_border.background < 0.01
    assert smooth.at_border.position < 0.3 and hidden.inside.position < 0.3
    assert con.seam_jumps(find_figures(frames), []) == []


@spoilt
@some
def test_a_steady_film_does_not_drift(spoil, scene):
    drift = con.drift(find_figures(spoil(film_of(scene))), SPANS)
    assert drift.deviation < 0.02 and drift.slope < 0.01
    assert drift.sharpness == pytest.approx(1, abs=0.1)


def test_statistics_are_the_worlds_colours():
    scene = Scene("green", "bar", "shaded", "down")
    statistics = con.span_statistics(find_figures(film_of(scene)), (33, 49))
    rows = np.linspace(0.15, 0.85, 32)
    assert statistics.background_mean == pytest.approx([0.5] * 3, abs=1e-3)
    assert statistics.background_std == pytest.approx([rows.std()] * 3, abs=1e-3)
    assert statistics.figure_mean == pytest.approx([0.08, 0.67, 0.16], abs=0.01)
    assert statistics.figure_std == pytest.approx([0] * 3, abs=0.02)
    assert statistics.sharpness == pytest.approx(1, abs=0.05)


@pytest.mark.slow
@spoilt
@some
@pytest.mark.parametrize("where", ["figure", "background"])
def test_drifting_colour_is_measured_where_it_drifts(spoil, scene, where):
    """Blue rises by 0.05 in each window, in the figure or in its background alone."""
    frames = film_of(scene) * 0.85
    opacity = find_figures(frames).opacity  # (T, H, W)
    for window, (start, stop) in enumerate(SPANS):
        share = opacity[start:stop] if where == "figure" else 1 - opacity[start:stop]
        frames[start:stop, ..., 2] += 0.05 * window * share
    drift = con.drift(find_figures(spoil(frames)), SPANS)
    assert drift.deviation == pytest.approx(0.1, abs=0.02)
    assert drift.slope == pytest.approx(0.05, abs=0.01)
    change = drift.spans[2].colours - drift.spans[0].colours  # (4, 3)
    still = "figure_mean" if where == "background" else "background_mean"
    moved = getattr(drift.spans[2], still) - getattr(drift.spans[0], still)
    assert np.abs(moved).max() < 0.03
    assert np.abs(change[:, :2]).max() < 0.02


@some
def test_a_film_that_blurs_loses_sharpness(scene):
    frames = film_of(scene)
    frames[33:] = softened(frames[33:])
    frames[49:] = softened(frames[49:])
    drift = con.drift(find_figures(frames), SPANS)
    first, second, third = (one.sharpness for one in drift.spans)
    assert first > second + 0.1 > third + 0.1
    assert drift.sharpness == pytest.approx(third / first) and drift.sharpness < 0.8


def test_drift_of_a_vanished_figure_is_unknown():
    frames = film_of(SCENES[0])
    frames[33:] = 0.05
    drift = con.drift(find_figures(frames), SPANS)
    assert np.isnan([drift.deviation, drift.slope, drift.sharpness]).all()
    assert np.isfinite(drift.spans[2].background_mean).all()


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda f: con.seam_jumps(find_figures(f), [6]), ("frame 6", "4 to 5")),
        (lambda f: con.span_statistics(find_figures(f), (3, 10)), ("(3, 10)", "0 to 9")),
        (lambda f: con.drift(find_figures(f), []), ("empty", "at least one")),
        (lambda f: con.frame_errors(f, f[:1]), ("(9, 32, 32, 3)", "(1, 32, 32, 3)", "equal")),
    ],
)
def test_bad_input_says_what_is_legal(call, parts):
    with pytest.raises(ValueError) as error:
        call(render(SCENES[0], 9))
    assert all(part in str(error.value) for part in parts), error.value
