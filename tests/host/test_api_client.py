"""The example of `docs/api.md`: queued, followed, refused, cancelled, gone on with."""

import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import graphs
import pytest

from skyreels_model.plan.film_plan import FilmPlan
from toy import measure

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "docs" / "api_client.py"
pytestmark = pytest.mark.server


@pytest.fixture
def start(server, tmp_path):
    """`start(graph, *changes)`: the example at work on this graph; files come to `tmp_path`."""
    children = []

    def run(graph, *changes):
        workflow = tmp_path / "film.json"
        workflow.write_text(json.dumps(graph))
        command = [sys.executable, CLIENT, workflow, "--out", tmp_path]
        command += ["--server", server.url]
        command += [part for change in changes for part in ("--set", change)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        if os.name != "nt":
            # Where the tests run in a script's background, Ctrl-C is ignored, by children as well.
            pipes["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        children.append(subprocess.Popen(list(map(str, command)), **pipes))
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.communicate()


def film(**changes):
    graph = graphs.film(**changes)
    graph["8"] = graphs.node("CreateVideo", images=["7", 0], fps=["5", 4])
    graph["9"] = graphs.node(
        "SaveVideo", video=["8", 0], filename_prefix="client", format="mp4", codec="h264"
    )
    return graph


def test_a_film_with_other_numbers_and_its_file(start, tmp_path):
    child = start(film(), "5.frames=21", "4.prompt=a green circle moving up on a grey background")
    said, errors = child.communicate()
    assert child.returncode == 0, errors
    assert "SkyReelsV2Sampler: " in said
    (video,) = tmp_path.glob("*.mp4")
    assert said.splitlines()[-1] == str(video) and len(measure.read_film(video)) == 21


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('1.model_name="absent.safetensors"', ("SkyReelsV2ModelLoader", "absent.safetensors")),
        ("5.window=18", ("SkyReelsV2Schedule (node 5): window is 18", "nearest: 17")),
    ],
    ids=["refused", "failed"],
)
def test_what_is_wrong_is_said(start, change, words):
    child = start(film(), change)
    _, errors = child.communicate()
    assert child.returncode == 1
    assert all(word in errors for word in words), errors


def test_the_page_names_what_there_is(server):
    """Nodes, inputs, outputs and the message of docs/api.md are this pack's."""
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("api_client", CLIENT)
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    known = client.ComfyUI(server.url)
    info = {
        node["display_name"]: node
        for name, node in json.loads(known.ask("/object_info")).items()
        if name.startswith("SkyReelsV2")
    }
    rows = re.findall(r"^\| .* \| (SkyReels-V2 .*) \| (.*) \|$", page, re.M)
    assert len(rows) == 6
    for node, inputs in rows:
        known_inputs = {n for group in info[node]["input"].values() for n in group}
        assert set(re.findall(r"`(\w+)`", inputs)) <= known_inputs, node
    for quoted in re.findall(r'"class_type": "(\w+)",\s+"inputs": (\{.*\})\}', page):
        kind, inputs = quoted[0], json.loads(quoted[1])
        given = json.loads(known.ask(f"/object_info/{kind}"))[kind]["input"]
        names = {n for group in given.values() for n in group}
        assert set(inputs) - {"..."} <= names, kind
        if "preset" in inputs:
            options = {**given["required"], **given["optional"]}["preset"][1]["options"]
            assert inputs["preset"] in options
    with pytest.raises(ValueError) as error:
        FilmPlan(num_frames=81, window=18)
    assert str(error.value) in page
    assert "`output/skyreels_v2_films/NAME`" in page


@pytest.mark.skipif(os.name == "nt", reason="signals are others there")
def test_ctrl_c_cancels_and_the_film_goes_on_when_it_is_queued_again(server, start, tmp_path):
    graph = film(frames=33, steps=60)
    graph["10"] = graphs.node(
        "SkyReelsV2Store", name="of a client", save_every=0.0, start_afresh=False
    )
    graph["6"]["inputs"]["store"] = ["10", 0]
    graph["11"] = graphs.node("PreviewAny", source=["6", 3])
    child = start(graph)
    for line in child.stdout:  # each begins the line anew; the server leaves some out
        if line.startswith("SkyReelsV2Sampler: ") and int(line.split()[1]) >= 5:
            break
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate()
    assert child.returncode == 1 and "cancelled" in errors
    child = start(graph)
    said, errors = child.communicate()
    assert child.returncode == 0, errors
    lines = [line for line in said.splitlines() if line.startswith("SkyReelsV2Sampler: ")]
    # 0 before the first model call
    first = next(line for line in lines if not line.startswith("SkyReelsV2Sampler: 0 "))
    assert int(first.split()[1]) >= 5
    (video,) = sorted(tmp_path.glob("*.mp4"))
    assert len(measure.read_film(video)) == 33
