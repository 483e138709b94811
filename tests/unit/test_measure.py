"""Films against their captions, through h264, too: right films pass, wrong ones fail."""

import dataclasses
import json
import sys

import av
import numpy as np
import pytest
from PIL import Image

from toy import continuity, measure
from toy.instruments import find_figures, torus_offset
from toy.world import SCENES, Scene, background, paint, parse_caption, path, render

CAPTION = "a blue bar moving left on a shaded background"
FIVE = render(SCENES[0], 5)


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
        # At this size the encoder's assembly gives another film each time.
        stream.options = {"x264-params": "asm=0:threads=1"}
        for frame in (frames * 255).round().clip(0, 255).astype(np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def through_h264(tmp_path, frames: np.ndarray) -> np.ndarray:
    write_film(tmp_path / "film.mp4", frames)
    return measure.read_film(tmp_path / "film.mp4")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [np.asarray, blurred], ids=["clean", "blurred"])
def test_each_scene_answers_its_own_caption_and_no_other(spoil):
    for index, scene in enumerate(SCENES):
        frames = spoil(render(scene, 9, start=(index * 5 % 32, index * 11 % 32)))
        score = measure.scores(frames, scene.caption, [(0, 9)])[0]
        assert score.ok and score.speed == pytest.approx(score.asked_speed, abs=0.1), scene
        wrong = SCENES[(index * 37 + 1) % len(SCENES)].caption
        assert not measure.scores(frames[:9], wrong, [(0, 9)])[0].ok


@pytest.mark.slow
def test_every_scene_survives_h264(tmp_path):
    for index, scene in enumerate(SCENES[::3]):
        start = (index * 5.3, index * 11.7)
        frames = through_h264(tmp_path, blurred(render(scene, 33, start)))
        assert frames.shape == (33, 32, 32, 3) and frames.dtype == np.uint8
        assert measure.scores(frames, scene.caption, [(0, 33)])[0].ok, scene
        centres = path([scene.direction] * 32, start)
        error = np.linalg.norm(torus_offset(find_figures(frames).centre - centres, 32), axis=1)
        # In green on grey only the colour channels differ, which h264 keeps at half the size.
        assert np.median(error) < 0.35 and error.max() < 1, scene


def changed(scene: Scene, **names: str) -> np.ndarray:
    """65 frames that from the seam at 33 on, without a jump, show another scene."""
    start = (16.0, 16.0)
    before = render(scene, 65, start)
    other = dataclasses.replace(scene, **names)
    centre = path([scene.direction] * 32, start)[-1]
    before[33:] = render(other, 33, tuple(centre))[1:]
    return before


@pytest.mark.slow
@pytest.mark.parametrize("coded", [False, True], ids=["clean", "h264"])
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("colour", "yellow"),
        ("shape", "circle"),
        ("background", "black"),
        ("background", "grey"),
        ("direction", "right"),
        ("direction", "up"),
    ],
)
def test_a_change_at_a_seam_fails_the_later_windows(name, other, coded, tmp_path):
    frames = changed(parse_caption(CAPTION), **{name: other})
    if coded:
        frames = through_h264(tmp_path, blurred(frames))
    results = measure.scores(frames, CAPTION, measure.window_spans(65, 33, 17))
    assert [score.ok for score in results] == [True, False, False]
    assert results[2].shown == dataclasses.replace(parse_caption(CAPTION), **{name: other})


def test_a_change_within_a_span_fails_that_span_alone():
    frames = changed(Scene("red", "circle", "white", "right"), colour="blue")
    spans = [(0, 25), (25, 45)]
    first, second = measure.scores(frames, "a red circle moving right on a white background", spans)
    assert first.ok and not second.ok
    assert second.shown.colour == "mixed" and second.shown.direction == "right"


def test_a_vanishing_figure_fails():
    scene = Scene("green", "bar", "shaded", "down")
    frames = render(scene, 33)
    frames[20:] = background("shaded")[:, None]
    score = measure.scores(frames, scene.caption, [(0, 33)])[0]
    assert score.shown == Scene("mixed", "mixed", "shaded", "none")


def test_seams_and_drift_are_measured_through_h264(tmp_path):
    """One film with three faults: a jump of 3 px at 33, a turn at 49, and a rise of blue."""
    scene = parse_caption(CAPTION)
    frames = render(scene, 65) * 0.75
    frames[33:] = np.roll(frames[33:], -3, axis=2)
    frames[49:] = frames[48:32:-1]
    frames[33:, ..., 2] += 0.2
    spans = measure.window_spans(65, 33, 17)
    figures = find_figures(through_h264(tmp_path, blurred(frames)))
    jump, turn = continuity.seam_jumps(figures, [33, 49])
    assert jump.at_border.position == pytest.approx(3, abs=0.5) and jump.inside.position < 0.5
    assert jump.at_border.velocity < 0.4
    assert turn.at_border.velocity == pytest.approx(1.5, abs=0.3) and turn.inside.velocity < 0.3
    for where in ("colour", "background"):
        assert getattr(jump.at_border, where) == pytest.approx(0.2, abs=0.04)
        assert getattr(turn.at_border, where) < 0.03
    assert continuity.drift(figures, spans).deviation == pytest.approx(0.2, abs=0.04)


def test_asked_speed_depends_on_the_frames_per_second():
    scene = parse_caption(CAPTION)
    for fps, speed in ((24, 0.75), (16, 1.125)):
        [score] = measure.scores(render(scene, 17, fps=fps), CAPTION, [(0, 17)], fps)
        assert score.ok and score.asked_speed == speed
        assert score.speed == pytest.approx(speed, abs=0.02)


def test_motion_covers_the_seam_before_a_span():
    frames = render(parse_caption(CAPTION), 18)
    [score] = measure.scores(frames, CAPTION, [(17, 18)])
    assert score.ok and score.speed == pytest.approx(0.75, abs=0.15)


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
    write_film(film, blurred(render(parse_caption(CAPTION), 65)))
    write_workflow(workflow, CAPTION, 65)
    assert run(monkeypatch, film, "--workflow", workflow, "--sheet", sheet) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == repr(CAPTION)
    assert len(lines) == 6 and lines[-1].startswith("3 of 3 windows")
    *names, speed, asked, ok = lines[3].split()
    assert names == ["1", "33-48", "shaded", "blue", "bar", "left"]
    assert float(speed) == pytest.approx(0.75, abs=0.03) and (asked, ok) == ("0.75", "yes")
    with Image.open(sheet) as picture:
        assert picture.format == "PNG" and picture.size == (8 * 130, 4 * 142)
    write_workflow(workflow, CAPTION.replace("left", "right"), 65)
    assert run(monkeypatch, film, "--workflow", workflow) == 1
    assert "0 of 3 windows" in capsys.readouterr().out
    write_workflow(workflow, CAPTION, 81)
    assert run(monkeypatch, film, "--workflow", workflow) == 1
    assert "65 frames; its workflow says 81" in capsys.readouterr().out


SHOTS = (
    "a red circle moving right on a black background",
    "a red circle moving up on a black background",
    "a blue bar moving left on a white background",
)


def test_storyboard_is_judged_shot_by_shot(tmp_path):
    text = f"0s: {SHOTS[0]} / 2s: {SHOTS[1]} / 4s cut: {SHOTS[2]}"
    write_workflow(tmp_path / "api.json", "", 97)
    nodes = json.loads((tmp_path / "api.json").read_text())
    story = {"class_type": measure.STORYBOARD, "inputs": {"text": text, "seconds": 6.0}}
    (tmp_path / "api.json").write_text(json.dumps({**nodes, "3": story}))
    workflow = measure.Workflow.read(tmp_path / "api.json")
    takes = workflow.takes()
    assert workflow.plan.num_frames == 144 and [t.prompt for t in takes] == list(SHOTS)
    assert [(t.start, t.stop) for t in takes] == [(0, 49), (0, 96), (96, 144)]
    # The second shot begins with the latent after the 48th frame.
    turn = ["right"] * 48 + ["up"] * 47
    first = paint(parse_caption(SHOTS[0]), path(turn, (10.0, 20.0)))
    film = np.concatenate([first, render(parse_caption(SHOTS[2]), 48)])
    found = workflow.scores(film)
    assert all(score.ok for score in found)
    assert [score.span for score in found] == [span for take in takes for span in take.spans]
    assert [score.asked.caption for score in found] == [
        p for t in takes for p in [t.prompt] * len(t.spans)
    ]
    assert len(measure.report(found).splitlines()) == len(found) + 7
    swapped = np.concatenate([film[96:], film[:96]])
    assert not any(score.ok for score in workflow.scores(swapped))


def test_unfit_workflows_are_refused(tmp_path):
    path = tmp_path / "api.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="0 nodes SkyReelsV2Schedule"):
        measure.Workflow.read(path)
    write_workflow(path, ["7", 0], 65)
    with pytest.raises(ValueError, match="prompt is a link"):
        measure.Workflow.read(path)


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: measure.window_spans(65, 17, 17), ("17", "overlap < window")),
        (lambda: measure.scores(FIVE, CAPTION, [(0, 6)]), ("(0, 6)", "0 to 5")),
        (lambda: measure.scores(FIVE, CAPTION, [(2, 2)]), ("(2, 2)", "0 to 5")),
        (lambda: measure.scores(FIVE, "a red square moving up", [(0, 5)]), ("square", "bar")),
        (lambda: measure.scores(FIVE, CAPTION[:-10], [(0, 5)]), ("toy world knows", "black")),
        (lambda: measure.scores(FIVE[:, :16], CAPTION, [(0, 5)]), ("(5, 16, 32, 3)", "H = W")),
    ],
)
def test_bad_input_says_what_is_legal(call, parts):
    with pytest.raises(ValueError) as error:
        call()
    assert all(part in str(error.value) for part in parts), error.value
