"""The captioner's nodes in a real ComfyUI, with engines that read from a script."""

import json
import sys
from fractions import Fraction

import av
import graphs
import numpy as np
import pytest
import torch
from tiny_words import ScriptedEngine

SHOTS = [
    {"subjects": [], "environment": f"Place {name} (far)", "camera_motion": "pans"}
    for name in ("one", "two", "three")
]
BRIGHT = (40, 200, 90)


@pytest.fixture(scope="module")
def give(look):
    """`give(name=value, …)` -> links that have these values."""
    probe = next(module for name, module in sys.modules.items() if name.endswith("/host/probe"))

    def links(prompt, **values):
        probe.GIVEN.update(values)
        prompt |= {f"give {n}": graphs.node("SkyReelsV2TestGiver", name=n) for n in values}
        return {name: [f"give {name}", 0] for name in values}

    return links


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three shots of a second at 10 fps, each of its own brightness, with a pattern that moves."""
    path = str(tmp_path_factory.mktemp("films") / "film.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(30):
            picture = np.full((48, 64, 3), BRIGHT[index // 10], np.uint8)
            picture[::8, index % 10 :: 16] //= 2
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def film_graph(**inputs):
    defaults = {"seed": 3, "fps": 24.0, "cuts": "", "shortest_shot": 0.5, "longest_part": 10.0}
    return graphs.node("SkyReelsV2CaptionFilm", **{**defaults, **inputs})


def test_a_video_becomes_a_storyboard_that_the_sampler_takes(look, give, film):
    from comfy_api.latest import InputImpl

    engine = ScriptedEngine([json.dumps(shot) for shot in SHOTS])
    prompt = {"clip": graphs.film()["2"]}
    links = give(prompt, engine=engine, video=InputImpl.VideoFromFile(film))
    prompt["film"] = film_graph(**links)
    prompt["board"] = graphs.node(
        "SkyReelsV2StoryboardText", clip=["clip", 0], text=["film", 0], seconds=["film", 1]
    )
    text, seconds, shots, count, board = look(
        prompt,
        text=["film", 0],
        seconds=["film", 1],
        shots=["film", 2],
        count=["film", 3],
        board=["board", 0],
    )
    assert text == (
        "0s: Place one \\(far\\). Pans.\n"
        "1s cut: Place two \\(far\\). Pans.\n"
        "2s cut: Place three \\(far\\). Pans."
    )
    assert seconds == pytest.approx(3) and count == 3
    assert [(shot.seconds, shot.cut) for shot in board] == [
        (1, False),
        (1, True),
        (pytest.approx(1), True),
    ]
    assert [one["i2v"] for one in json.loads(shots)] == ["- Pans."] * 3
    seen = [messages[0].pictures for messages, _ in engine.asked]
    assert [tuple(pictures.shape) for pictures in seen] == [(16, 420, 360, 3)] * 3
    for bright, pictures in zip(BRIGHT, seen, strict=True):
        assert abs(pictures.float().median() - bright) < 8
    assert [sampling.seed for _, sampling in engine.asked] == [3, 6, 9]


def test_a_trimmed_video_and_one_of_images_are_seen_as_the_host_has_them(look, give, film):
    from comfy_api.latest import InputImpl, Types

    images = torch.full((5, 32, 32, 3), 0.5)
    made = InputImpl.VideoFromComponents(
        Types.VideoComponents(images=images, frame_rate=Fraction(10))
    )
    trimmed = InputImpl.VideoFromFile(film, start_time=1.0, duration=1.0)
    for video, bright in ((trimmed, BRIGHT[1]), (made, 128)):
        engine, prompt = ScriptedEngine([json.dumps(SHOTS[0])]), {}
        links = give(prompt, engine=engine, video=video)
        prompt["film"] = film_graph(cuts="0", **links)
        (count,) = look(prompt, count=["film", 3])
        assert count == 1
        assert abs(engine.asked[0][0][0].pictures.float().median() - bright) < 8


def test_a_shot_of_images_is_told_in_fields_and_captions(look, give):
    told = {
        "subjects": [{"TYPES": {"type": "Human", "sub_type": "Man"}, "action": "A man {waves}"}],
        "shot_type": "close_up",
        "lighting": "dim",
        "environment": "a room",
        "camera_motion": "pans",
    }
    engine = ScriptedEngine([f"```json\n{json.dumps(told)}\n```"])
    fusing = ScriptedEngine(["A man in a room.", "A man waves."])
    prompt = {}
    links = give(prompt, engine=engine, fusion_engine=fusing, images=torch.rand(3, 32, 32, 3))
    prompt["one"] = graphs.node("SkyReelsV2Captioner", seed=1, **links)
    names = "t2v i2v description subjects shot camera_motion environment lighting raw".split()
    found = look(prompt, **{name: ["one", slot] for slot, name in enumerate(names)})
    t2v, i2v, description, *fields, raw = found
    assert (t2v, i2v) == ("A man in a room. Pans.", "A man waves. Pans.")
    assert json.loads(description)["subjects"][0]["action"] == "A man {waves}"
    assert fields == ["A man {waves}.", "close-up", "pans", "a room", "dim"]
    assert raw.startswith("```json")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "video is 'missing'; it must be given where images are not"),
        ({"images": torch.zeros(1, 8, 8, 3), "video": "both"}, "video is 'given together"),
        ({"images": torch.zeros(0, 8, 8, 3)}, "images is .*at least one image"),
        ({"video": "nothing"}, "video is 'nothing'; it must be a VIDEO"),
        ({"images": torch.zeros(1, 8, 8, 3), "blind": True}, "reads text only"),
    ],
)
def test_what_cannot_be_captioned_is_said(run_prompt, give, film, given, error):
    from comfy_api.latest import InputImpl

    given, prompt = dict(given), {}
    engine = ScriptedEngine([json.dumps(SHOTS[0])], sees_pictures=not given.pop("blind", False))
    if given.get("video") == "both":
        given["video"] = InputImpl.VideoFromFile(film)
    prompt["one"] = graphs.node(
        "SkyReelsV2Captioner", seed=0, **give(prompt, engine=engine, **given)
    )
    prompt["see"] = graphs.node("SkyReelsV2TestProbe", value=["one", 0], name="caption")
    result = run_prompt(prompt)
    assert not result.success
    assert result.error["exception_type"].endswith("ValueError")
    with pytest.raises(ValueError, match=error):
        raise ValueError(result.error["exception_message"])


def test_a_clip_that_only_reads_is_no_engine(run_prompt):
    prompt = {"clip": graphs.film()["2"], "image": graphs.node("EmptyImage", width=8, height=8)}
    prompt["image"]["inputs"] |= {"batch_size": 1, "color": 0}
    prompt["one"] = graphs.node(
        "SkyReelsV2Captioner", engine=["clip", 0], images=["image", 0], seed=0
    )
    prompt["see"] = graphs.node("SkyReelsV2TestProbe", value=["one", 0], name="caption")
    result = run_prompt(prompt)
    assert result.error["exception_message"].startswith("engine: this CLIP does not write text")


def test_cancel_ends_the_captions_at_the_next_token(run_prompt, give, film):
    import comfy.model_management
    from comfy_api.latest import InputImpl

    heard = []

    class Cancelled(ScriptedEngine):
        def generate(self, messages, sampling, on_token):
            for number in range(100):
                heard.append(number)
                if len(heard) == 5:
                    comfy.model_management.interrupt_current_processing()
                on_token("word ")
            return ""

    prompt = {}
    links = give(prompt, engine=Cancelled([]), video=InputImpl.VideoFromFile(film))
    prompt["film"] = film_graph(**links)
    prompt["see"] = graphs.node("SkyReelsV2TestProbe", value=["film", 0], name="storyboard")
    result = run_prompt(prompt)
    assert not result.success and heard == list(range(5))


def run_and_see(run_prompt, look, prompt, **links):
    """What reached those links though others were stopped, and the error that was shown."""
    probe = next(module for name, module in sys.modules.items() if name.endswith("/host/probe"))
    for name, link in links.items():
        prompt[f"probe {name}"] = graphs.node("SkyReelsV2TestProbe", value=link, name=name)
    probe.SEEN.clear()
    result = run_prompt(prompt)
    assert not result.success and result.error["exception_type"] == "ExecutionBlocked"
    return dict(probe.SEEN), result.error["exception_message"]


def test_an_answer_that_cannot_be_read_is_kept_beside_the_error(run_prompt, look, give):
    prompt, engine = {}, ScriptedEngine(["no", "never", "a {horse}"])
    prompt["one"] = graphs.node(
        "SkyReelsV2Captioner", seed=0, **give(prompt, engine=engine, images=torch.zeros(1, 8, 8, 3))
    )
    seen, error = run_and_see(run_prompt, look, prompt, caption=["one", 0], raw=["one", 8])
    assert seen == {"raw": "a {horse}"}
    assert "without any field of a description" in error and "(asked 3 times)" in error


@pytest.mark.parametrize("failure", [ValueError("the server is gone"), MemoryError("no room")])
def test_a_failure_in_the_middle_of_a_film_keeps_the_shots_before(
    run_prompt, look, give, film, failure
):
    from comfy_api.latest import InputImpl

    answers = [json.dumps(shot) for shot in SHOTS]
    prompt, engine = {}, ScriptedEngine([answers[0], answers[1], failure])
    given = {"engine": engine, "video": InputImpl.VideoFromFile(film)}
    prompt["film"] = film_graph(**give(prompt, **given))
    outputs = {"storyboard": ["film", 0], "shots": ["film", 2], "count": ["film", 3]}
    seen, error = run_and_see(run_prompt, look, prompt, **outputs)
    assert "shot 3 of 3" in error and str(failure) in error
    assert sorted(seen) == ["count", "shots"] and seen["count"] == 3
    told = json.loads(seen["shots"])
    assert [one.get("i2v") for one in told] == ["- Pans.", "- Pans.", None]
    assert str(failure) in told[2]["error"] and told[2]["start"] == 2
    # Given back, only the missing shot is asked for.
    prompt, again = {}, ScriptedEngine(answers[2:])
    given["engine"] = again
    prompt["film"] = film_graph(known_shots=seen["shots"], **give(prompt, **given))
    text, shots = look(prompt, text=["film", 0], shots=["film", 2])
    assert [line.split(".")[0] for line in text.splitlines()] == [
        "0s: Place one \\(far\\)",
        "1s cut: Place two \\(far\\)",
        "2s cut: Place three \\(far\\)",
    ]
    assert len(again.asked) == 1 and again.asked[0][1].seed == 9
    assert json.loads(shots)[:2] == told[:2]


def test_a_failure_before_anything_was_written_is_the_nodes_own(run_prompt, give):
    prompt, engine = {}, ScriptedEngine([ValueError("the server is gone")])
    prompt["one"] = graphs.node(
        "SkyReelsV2Captioner", seed=0, **give(prompt, engine=engine, images=torch.zeros(1, 8, 8, 3))
    )
    prompt["see"] = graphs.node("SkyReelsV2TestProbe", value=["one", 0], name="caption")
    result = run_prompt(prompt)
    assert result.error["node_type"] == "SkyReelsV2Captioner"
    assert result.error["exception_message"].strip() == "the server is gone"
    assert result.error["exception_type"] == "ValueError"
