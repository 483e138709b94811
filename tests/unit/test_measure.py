"""The measuring instruments on the world's ground truth: right films pass, wrong ones fail."""

import itertools
import json
import sys

import av
import numpy as np
import pytest
from PIL import Image

from toy import measure
from toy.world import BACKGROUNDS, COLOURS, DIRECTIONS, caption, captions, render

LOOKS = list(itertools.product(COLOURS, BACKGROUNDS, DIRECTIONS))


def blurred(frames: np.ndarray) -> np.ndarray:
    """As a VAE leaves them: a soft edge and a little noise."""
    total = sum(np.roll(frames, (dy, dx), axis=(1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
    noise = np.random.default_rng(0).normal(0, 0.03, frames.shape)
    return (total / 9 + noise).astype(np.float32)


def write_film(path, frames: np.ndarray, fps: int = 24) -> None:
    """h264 in yuv420p, as ComfyUI's SaveVideo writes it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in (frames * 255).round().clip(0, 255).astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def look_of(frames) -> measure.Look:
    direction, _ = measure.motion(measure.centroid_track(frames))
    return measure.Look(measure.colour_name(frames), measure.background_name(frames), direction)


@pytest.mark.parametrize("spoil", [np.asarray, blurred], ids=["clean", "blurred"])
def test_every_look_of_the_world_is_read_and_no_other(spoil):
    for index, names in enumerate(LOOKS):
        frames = spoil(render(*names, 17, start=(index * 5 % 32, index * 11 % 32)))
        score = measure.scores(frames, caption(*names), [(0, 17)])[0]
        assert score.ok, names
        assert [c for c in captions() if measure.parse_caption(c) == score.shown] == [
            caption(*names)
        ]


def test_uint8_reads_as_float():
    frames = render("blue", "grey", "up", 9)
    assert look_of((frames * 255).astype(np.uint8)) == look_of(frames)


def test_every_look_survives_h264(tmp_path):
    for names in LOOKS[::5]:
        write_film(tmp_path / "film.mp4", blurred(render(*names, 33)))
        frames = measure.read_film(tmp_path / "film.mp4")
        assert frames.shape == (33, 32, 32, 3)
        assert measure.scores(frames, caption(*names), [(0, 33)])[0].ok, names


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("speed", [0.5, 0.75, 2.0])
def test_track_is_the_path_of_the_centre_across_the_sides(direction, speed):
    frames = render("red", "black", direction, 65, start=(3.0, 30.0), speed=speed)
    track = measure.centroid_track(frames)
    step = np.asarray(DIRECTIONS[direction]) * speed
    expected = np.asarray([3.0, 30.0]) + np.arange(65)[:, None] * step
    assert np.abs(track - expected).max() < 0.1
    name, measured = measure.motion(track)
    assert name == direction and measured == pytest.approx(speed, abs=0.01)


def test_still_and_slanting_discs_have_no_direction():
    still = render("red", "black", "right", 17, speed=0.05)
    assert measure.motion(measure.centroid_track(still))[0] == "none"
    slope = np.arange(17)[:, None] * np.array([0.6, 0.5])
    assert measure.motion(slope)[0] == "none"


def test_frames_without_one_disc_have_no_colour_and_no_centre():
    plain = np.full((9, 32, 32, 3), 0.5, np.float32)
    noise = np.random.default_rng(1).uniform(0, 1, (9, 32, 32, 3)).astype(np.float32)
    left, right = (render("red", "black", "up", 9, start=(x, 16.0)) for x in (7.0, 23.0))
    for frames in (plain, noise, np.maximum(left, right)):
        assert np.isnan(measure.centroid_track(frames)).all()
        assert measure.colour_name(frames) == "none"
        assert measure.motion(measure.centroid_track(frames)) == ("none", 0.0)
    assert measure.background_name(plain) == "grey"


def test_other_colours_than_the_worlds_are_not_named():
    frames = render("red", "black", "right", 9)
    assert measure.colour_name(frames[..., [0, 1, 0]]) == "none"  # magenta
    tinted = np.broadcast_to(np.array([0.1, 0.3, 0.5], np.float32), (9, 32, 32, 3))
    assert measure.background_name(tinted) == "none"


def test_a_change_within_a_span_fails_that_span_alone():
    red, blue = (render(colour, "white", "right", 33) for colour in ("red", "blue"))
    frames = np.concatenate([red[:24], blue[24:]])
    spans = [(0, 17), (17, 33)]
    first, second = measure.scores(frames, caption("red", "white", "right"), spans)
    assert first.ok and not second.ok
    assert second.shown.colour == "mixed" and second.shown.direction == "right"


def test_a_vanishing_disc_fails():
    frames = render("green", "black", "down", 33)
    frames[20:] = frames[0, 0, 0]
    score = measure.scores(frames, caption("green", "black", "down"), [(0, 33)])[0]
    assert (score.shown.colour, score.shown.direction) == ("mixed", "none")


def test_a_turn_at_a_seam_fails_the_later_window():
    there = render("yellow", "grey", "right", 33, start=(4.0, 10.0))
    back = render("yellow", "grey", "left", 17, start=(4.0 + 32 * 0.75, 10.0))
    frames = np.concatenate([there, back[1:]])
    spans = measure.window_spans(49, 33, 17)
    results = measure.scores(frames, caption("yellow", "grey", "right"), spans)
    assert [score.ok for score in results] == [True, False]
    assert results[1].shown.direction == "left"


def test_seam_jump_is_seen_at_its_border_only():
    smooth = render("red", "black", "right", 49, start=(5.0, 5.0))
    jumped = np.concatenate([smooth[:33], np.roll(smooth[33:], 3, axis=1)])
    steady, seam = measure.seam_jumps(measure.centroid_track(jumped), [17, 33])
    assert steady.at_border < 0.2 and seam.at_border == pytest.approx(3, abs=0.1)
    assert seam.inside < 0.2


def test_spans_are_the_new_frames_of_each_window():
    assert measure.window_spans(33, 33, 17) == [(0, 33)]
    assert measure.window_spans(65, 33, 17) == [(0, 33), (33, 49), (49, 65)]
    assert measure.window_spans(41, 33, 17) == [(0, 33), (33, 41)]
    assert measure.window_spans(17, 33, 17) == [(0, 17)]


def write_workflow(path, prompt, frames, **changes):
    schedule = {"frames": frames, "window": 33, "overlap": 17, "fps": 24, **changes}
    nodes = {
        "1": {"class_type": "SkyReelsV2PromptEncode", "inputs": {"prompt": prompt}},
        "2": {"class_type": "SkyReelsV2Schedule", "inputs": schedule},
    }
    path.write_text(json.dumps(nodes))


def run(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["measure.py", *map(str, arguments)])
    return measure.main()


def test_command_judges_a_film_by_its_workflow(tmp_path, monkeypatch, capsys):
    film, workflow, sheet = (tmp_path / n for n in ("film.mp4", "api.json", "sheet.png"))
    write_film(film, blurred(render("blue", "white", "left", 65)))
    write_workflow(workflow, caption("blue", "white", "left"), 65)
    assert run(monkeypatch, film, "--workflow", workflow, "--sheet", sheet) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[-1].startswith("3 of 3 windows")
    assert lines[2].split() == ["1", "33-48", "white", "blue", "left", "0.75", "yes"]
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.size == (8 * 130, 4 * 142)
    write_workflow(workflow, caption("blue", "white", "right"), 65)
    assert run(monkeypatch, film, "--workflow", workflow) == 1
    assert "0 of 3 windows" in capsys.readouterr().out
    write_workflow(workflow, caption("blue", "white", "left"), 81)
    assert run(monkeypatch, film, "--workflow", workflow) == 1
    assert "65 frames; its workflow says 81" in capsys.readouterr().out


def test_unfit_workflows_are_refused(tmp_path):
    path = tmp_path / "api.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="0 nodes SkyReelsV2PromptEncode"):
        measure.Workflow.read(path)
    write_workflow(path, ["7", 0], 65)
    with pytest.raises(ValueError, match="prompt is a link"):
        measure.Workflow.read(path)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: measure.as_float(np.zeros((3, 32, 32), np.uint8)), ("(3, 32, 32)", "T, H, W, 3")),
        (lambda: measure.as_float(np.zeros((1, 4, 4, 3), np.int64)), ("int64", "uint8")),
        (lambda: measure.parse_caption("a red square moving up"), ("square", "circle")),
        (
            lambda: measure.parse_caption(caption("red", "black", "up")[:-10]),
            ("toy world knows", "black"),
        ),
        (lambda: measure.window_spans(65, 17, 17), ("17", "overlap < window")),
        (lambda: measure.seam_jumps(np.zeros((9, 2)), [8]), ("frame 8", "2 to 7")),
        (lambda: render("pink", "black", "up", 1), ("pink", "red")),
        (
            lambda: measure.scores(render("red", "black", "up", 5), captions()[0], [(0, 6)]),
            ("(0, 6)", "0 to 5"),
        ),
    ],
)
def test_bad_input_says_what_is_legal(call, parts):
    with pytest.raises(ValueError) as error:
        call()
    assert all(part in str(error.value) for part in parts), error.value
