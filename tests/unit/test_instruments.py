"""Each instrument on the world's ground truth: clean, blurred and noisy, and on what is wrong."""

import dataclasses

import numpy as np
import pytest

from toy import instruments as ins
from toy.world import (
    BACKGROUNDS,
    COLOURS,
    DIRECTIONS,
    SCENES,
    Scene,
    background,
    paint,
    path,
    render,
)

RED = Scene("red", "circle", "black", "right")


def softened(frames: np.ndarray) -> np.ndarray:
    """The mean over 3×3 px."""
    return sum(np.roll(frames, (dy, dx), axis=(1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9


def noisy(frames: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.03, frames.shape)
    return (frames + noise).astype(np.float32)


def blurred(frames: np.ndarray) -> np.ndarray:
    """As a VAE leaves them: a soft edge and a little noise."""
    return noisy(softened(frames))


def twice_blurred(frames: np.ndarray) -> np.ndarray:
    """Worse than a trained VAE leaves them."""
    return noisy(softened(softened(frames)))


def shown(frames: np.ndarray) -> Scene:
    figures = ins.find_figures(frames)
    direction, _ = ins.motion(ins.centroid_track(figures))
    return Scene(
        ins.colour_name(figures), ins.shape_name(figures), ins.background_name(figures), direction
    )


def start_of(index: int) -> tuple[float, float]:
    """Another place for each scene: sub-pixel, and over the sides."""
    return index * 5.3 % 32, index * 11.7 % 32


# The largest errors allowed: px of a centre, a channel of the figure's and of the rows' colour.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "px", "colour", "row"),
    [
        (np.asarray, 0.1, 1e-3, 1e-3),
        (blurred, 0.3, 0.05, 0.05),
        (twice_blurred, 0.4, 0.08, 0.05),
    ],
)
def test_every_scene_of_the_world_is_read(spoil, px, colour, row):
    for index, scene in enumerate(SCENES):
        frames = spoil(render(scene, 9, start_of(index)))
        assert shown(frames) == scene
        figures = ins.find_figures(frames)
        centres = path([scene.direction] * 8, start_of(index))
        offset = ins.torus_offset(figures.centre - centres, 32)
        assert np.abs(offset).max() < px, scene
        assert np.abs(figures.colour - COLOURS[scene.colour]).max() < colour, scene
        # Blurring wraps, which mixes the first and last rows of a graded background.
        rows = figures.ground - background(scene.background)
        assert np.abs(rows[:, 3:-3]).max() < row, scene


def test_opacity_is_the_coverage_also_on_a_graded_background():
    centres = path(["down"] * 16, (11.3, 3.7))
    for scene in (Scene("green", shape, "shaded", "down") for shape in ("circle", "bar")):
        figures = ins.find_figures(paint(scene, centres))
        truth = ins.coverage(scene.shape, centres, 32)
        assert np.abs(figures.opacity - truth).max() < 1e-3


def test_uint8_reads_as_float():
    frames = render(Scene("blue", "bar", "shaded", "up"), 9)
    assert shown((frames * 255).astype(np.uint8)) == shown(frames)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("fps", "speed"), [(36, 0.5), (24, 0.75), (16, 1.125), (9, 2.0)])
def test_track_is_the_path_of_the_centre_across_the_sides(direction, fps, speed):
    scene = dataclasses.replace(RED, direction=direction)
    track = ins.centroid_track(ins.find_figures(render(scene, 65, (3.0, 30.0), fps)))
    assert np.abs(track - path([direction] * 64, (3.0, 30.0), fps)).max() < 0.1
    name, measured = ins.motion(track)
    assert name == direction and measured == pytest.approx(speed, abs=0.01)


def test_track_goes_on_behind_frames_without_a_figure():
    frames = render(RED, 33)
    frames[10:14] = 0.05
    track = ins.centroid_track(ins.find_figures(frames))
    assert np.isnan(track[10:14]).all()
    assert track[-1, 0] == pytest.approx(16 + 32 * 0.75, abs=0.1)
    # Four of 33 frames are more than a tenth.
    assert ins.motion(track) == ("none", 0.0)


@pytest.mark.parametrize("ground", BACKGROUNDS)
def test_bars_wider_than_half_a_row_are_not_taken_for_the_ground(monkeypatch, ground):
    """Strong guidance widens them; the rest of their rows would move the other way."""
    monkeypatch.setattr("toy.world.BAR", (8.5, 4.0))
    scene = Scene("red", "bar", ground, "right")
    frames = blurred(render(scene, 33))
    monkeypatch.undo()
    assert shown(frames) == scene


def test_still_and_slanting_figures_have_no_direction():
    still = render(RED, 17, fps=360)
    assert ins.motion(ins.centroid_track(ins.find_figures(still)))[0] == "none"
    slope = np.arange(17)[:, None] * np.array([0.6, 0.5])
    assert ins.motion(slope)[0] == "none"


def test_frames_without_one_figure_have_no_names():
    plain = np.full((9, 32, 32, 3), 0.5, np.float32)
    noise = np.random.default_rng(1).uniform(0, 1, (9, 32, 32, 3)).astype(np.float32)
    left, right = (render(RED, 9, start=(x, 16.0)) for x in (7.0, 23.0))
    for frames in (plain, noise, np.maximum(left, right)):
        figures = ins.find_figures(frames)
        assert np.isnan(figures.centre).all() and not figures.opacity.any()
        assert ins.colour_name(figures) == ins.shape_name(figures) == "none"
        assert ins.motion(ins.centroid_track(figures)) == ("none", 0.0)
        assert np.isnan(ins.sharpness(figures)).all()
    assert ins.background_name(ins.find_figures(plain)) == "grey"


def on(name: str, cover: np.ndarray) -> np.ndarray:
    """Red that covers (H, W) so much of a background, for nine frames."""
    ground = background(name)[:, None]
    frame = ground + cover[..., None] * (np.asarray(COLOURS["red"]) - ground)
    return np.repeat(frame[None], 9, axis=0).astype(np.float32)


@pytest.mark.parametrize("spoil", [np.asarray, blurred])
@pytest.mark.parametrize("name", BACKGROUNDS)
def test_other_shapes_than_the_worlds_are_not_named(spoil, name):
    y, x = np.mgrid[:32, :32] - 15.5
    radius = np.hypot(x, y)
    circle, bar = (ins.coverage(shape, np.array([[16.0, 16.0]]), 32)[0] for shape in ins.SHAPES)
    others = {
        "upright bar": bar.T,
        "ring": (radius < 8) & (radius > 5),
        "large disc": np.clip(9 - radius, 0, 1),
        "small disc": np.clip(4.5 - radius, 0, 1),
        "half a circle, half a bar": (circle + bar) / 2,
    }
    for label, cover in others.items():
        assert ins.shape_name(ins.find_figures(spoil(on(name, cover)))) == "none", label
    assert ins.shape_name(ins.find_figures(spoil(on(name, circle)))) == "circle"


def test_other_colours_and_backgrounds_than_the_worlds_are_not_named():
    magenta = render(RED, 9)[..., [0, 1, 0]]
    assert ins.colour_name(ins.find_figures(magenta)) == "none"
    tinted = np.broadcast_to(np.array([0.1, 0.3, 0.5], np.float32), (9, 32, 32, 3))
    upside_down = render(Scene("red", "circle", "shaded", "right"), 9)[:, ::-1]
    for frames in (tinted, upside_down):
        assert ins.background_name(ins.find_figures(frames)) == "none"


@pytest.mark.parametrize("name", ["colour", "shape", "background"])
def test_frames_that_disagree_are_mixed(name):
    other = {"colour": "blue", "shape": "bar", "background": "shaded"}[name]
    before, behind = (render(s, 17) for s in (RED, dataclasses.replace(RED, **{name: other})))
    read = getattr(ins, f"{name}_name")
    for spoil in (np.asarray, blurred):
        frames = spoil(np.concatenate([before[:8], behind[8:]]))
        assert read(ins.find_figures(frames)) == "mixed"
        # One frame in seventeen is no more than noise.
        frames = spoil(np.concatenate([before[:1], behind[1:]]))
        assert read(ins.find_figures(frames)) == other


def test_unclear_frames_have_no_vote_on_the_shape():
    circle, bar = (render(dataclasses.replace(RED, shape=shape), 12) for shape in ins.SHAPES)
    half = (circle + bar) / 2
    frames = np.concatenate([half[:5], bar[5:]])
    assert ins.shape_name(ins.find_figures(frames)) == "bar"
    frames = np.concatenate([half[:7], bar[7:]])
    assert ins.shape_name(ins.find_figures(frames)) == "none"


@pytest.mark.parametrize("offset", [(1, -1), (-1, 0), (0, 1)])
def test_shapes_are_found_a_pixel_beside_the_centroid(offset):
    """Smeared edges move a centroid, which must not cost the shape its fit."""
    for scene in SCENES[::16]:
        figures = ins.find_figures(render(scene, 3))
        aside = dataclasses.replace(figures, centre=figures.centre + offset)
        assert np.abs(ins.fit_shapes(aside).error - ins.fit_shapes(figures).error).max() < 0.02


@pytest.mark.slow
def test_sharpness_falls_with_every_blur_and_not_with_noise():
    def measured(frames: np.ndarray) -> float:
        return float(np.median(ins.sharpness(ins.find_figures(frames))))

    for index, scene in enumerate(SCENES[::5]):
        frames = render(scene, 5, start_of(index))
        values = [measured(frames)]
        assert values[0] == pytest.approx(1, abs=0.06), scene
        for _ in range(4):
            assert measured(noisy(frames)) == pytest.approx(values[-1], abs=0.06), scene
            frames = softened(frames)
            values.append(measured(frames))
        # The kernel's part of the blur shrinks from step to step, and never to nothing.
        assert max(np.diff(values)) < -0.02 and values[0] - values[1] > 0.2, (scene, values)


@pytest.mark.parametrize(
    ("frames", "parts"),
    [
        (np.zeros((3, 32, 32), np.uint8), ("(3, 32, 32)", "T, H, W, 3")),
        (np.zeros((1, 4, 4, 3), np.int64), ("int64", "uint8")),
        (np.zeros((1, 4, 8, 3), np.uint8), ("(1, 4, 8, 3)", "H = W")),
        (np.zeros((0, 4, 4, 3), np.uint8), ("(0, 4, 4, 3)", "T >= 1")),
    ],
)
def test_bad_input_says_what_is_legal(frames, parts):
    with pytest.raises(ValueError) as error:
        ins.find_figures(frames)
    assert all(part in str(error.value) for part in parts), error.value
