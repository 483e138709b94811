"""What the page asks while a plan is edited: the node's own answer, or a clear refusal."""

import json
import urllib.error
import urllib.request

import graphs
import pytest

pytestmark = pytest.mark.server
SCHEDULE = {
    "width": 32, "height": 32, "frames": 41, "window": 33, "overlap": 17, "steps": 3, "shift": 5.0,
    "ar_step": 0, "block_size": 1, "prefix_noise": 20, "fps": 24,
}  # fmt: skip


@pytest.fixture(scope="module")
def ask(server):
    """`ask(question)`: status and answer; a question is bytes, or what JSON has."""

    def run(question):
        body = question if isinstance(question, bytes) else json.dumps(question).encode()
        request = urllib.request.Request(server.url + "/skyreels_v2/plan", data=body)
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return run


def test_the_page_is_told_what_the_node_says(ask, look):
    status, answer = ask({"schedule": SCHEDULE, "model": "SkyReels-V2-DF-14B-540P"})
    graph = {"1": graphs.node("SkyReelsV2Schedule", **SCHEDULE)}
    (summary,) = look(graph, summary=["1", 2])
    assert status == 200 and answer["summary"] == summary
    assert answer["title"] == "1.708 s, 41 frames, 2 windows, 6 model calls"
    assert answer["memory"].startswith("GPU memory: ") and "(bf16)" in answer["memory"]


@pytest.mark.parametrize(
    ("changes", "name", "nearest"),
    [
        ({"overlap": 33}, "overlap", 29),
        ({"window": 1}, "window", 5),
        ({"sliding": True, "ar_step": 0}, "ar_step", 1),
        ({"fps": 10**400}, "fps", 240),
    ],
)
def test_an_illegal_number_comes_with_the_nearest(ask, changes, name, nearest):
    status, answer = ask({"schedule": SCHEDULE | changes})
    assert status == 200 and answer["refused"]["input"] == name
    assert answer["refused"]["nearest"] == nearest


@pytest.mark.parametrize(
    ("part", "message"),
    [
        # Of a newer version of the pack.
        ({"schedule": SCHEDULE | {"preset": "newer"}}, "preset is 'newer'; it must be one of"),
        ({"schedule": SCHEDULE | {"frames": "many"}}, "frames is 'many'; it must be a whole"),
        ({"schedule": SCHEDULE | {"frames": float("nan")}}, "frames is nan"),
        ({"schedule": SCHEDULE | {"sliding": None}}, "sliding is nothing (None); it must be true"),
        ({"storyboard": {"text": 5, "seconds": 4}}, "text is 5; it must be text"),
        ({"storyboard": {"text": "0s: a", "seconds": "4"}}, "seconds is '4'"),
        ({"frames": {"connected": [], "key_seconds": 5}}, "key_seconds is 5; it must be text"),
        ({"frames": {"connected": [], "loop": "yes"}}, "loop is 'yes'; it must be True or"),
        ({"storyboard": {"text": "no mark", "seconds": 4}}, "text begins with 'no mark'"),
        ({"storyboard": {"shots": [{"seconds": 0}]}}, "seconds is 0"),
        ({"frames": {"connected": ["start_image", "video"]}}, "start_image and video"),
        ({"frames": {"connected": ["key_images"], "key_seconds": "x"}}, "key_seconds is 'x'"),
        ({"schedule": SCHEDULE | {"denoise": 0.5}, "frames": {}}, "denoise is 0.5"),
    ],
)
def test_what_the_film_cannot_be_made_of_is_said(ask, part, message):
    status, answer = ask({"schedule": SCHEDULE} | part)
    assert status == 200 and message in answer["refused"]["message"]


def test_a_value_of_another_kind_comes_with_the_default(ask):
    for name, value, default in (("preset", "newer", "custom"), ("steps", "a", 30)):
        _, answer = ask({"schedule": SCHEDULE | {name: value}})
        assert (answer["refused"]["input"], answer["refused"]["nearest"]) == (name, default)


def test_an_input_of_a_newer_version_is_left_out_and_said(ask):
    status, answer = ask({"schedule": SCHEDULE | {"of_a_newer_one": 5}})
    assert status == 200 and answer["plan"]["frames"] == 41
    (warning,) = answer["warnings"]
    assert warning.startswith("of_a_newer_one is no input of SkyReels-V2 Schedule in this version")


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([], "the body is list"),
        ({"plan": {}}, "the body has 'plan'"),
        ({"schedule": SCHEDULE, "storyboard": {"shots": [{"seconds": 1}] * 2001}}, "2000"),
        ({"schedule": SCHEDULE, "frames": {"connected": "all"}}, "frames has a list"),
    ],
)
def test_nonsense_is_answered_in_words(ask, question, message):
    status, answer = ask(question)
    assert status == 400 and message in answer["error"]


def test_a_question_without_end_is_not_read_to_it(ask):
    status, answer = ask(b" " * (5 * 2**20))
    assert status == 413 and "longer than" in answer["error"]


def test_the_longest_film_with_the_most_shots_is_planned(ask):
    shots = [{"seconds": 43.2, "cut": True}] * 2000
    status, answer = ask({"schedule": {}, "storyboard": {"shots": shots}})
    assert status == 200 and answer["plan"]["frames"] == 2_073_600
