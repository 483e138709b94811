"""The pack in a real ComfyUI server: queued over HTTP, followed by websocket, interrupted."""

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import urllib.request
from pathlib import Path

import graphs
import pytest

from devtools import inprocess, outcome, remote
from devtools.cache import SetupError
from devtools.prompt import InvalidPrompt
from devtools.remote import Client
from toy import measure

ROOT = Path(__file__).resolve().parents[2]
TEXT_EVENT = struct.pack(">I", 3)  # begins the host's messages with a text for a node
pytestmark = pytest.mark.server


def saved(prompt):
    prompt["8"] = graphs.node("CreateVideo", images=["7", 0], fps=["5", 4])
    prompt["9"] = graphs.node(
        "SaveVideo", video=["8", 0], filename_prefix="film", format="mp4", codec="h264"
    )
    return prompt


def fetch(server, path):
    with urllib.request.urlopen(server.url + path) as response:
        return response.read()


def test_nodes_are_there_with_their_help_and_every_input_has_a_tooltip(server):
    known = json.loads(fetch(server, "/object_info"))
    ours = {name: info for name, info in known.items() if name.startswith("SkyReelsV2")}
    assert len(ours) >= 7
    pack = next(iter(ours.values()))["python_module"].removeprefix("custom_nodes.")
    for name, info in ours.items():
        assert info["description"]
        # Beside these two a node may have hidden ones, which the host itself fills in.
        for group in ("required", "optional"):
            for key, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), f"{name}.{key}"
        page = fetch(server, f"/extensions/{pack}/docs/{name}.md").decode()
        assert page.startswith("# ")


def test_a_film_over_http_with_progress_and_its_file(server, tmp_path):
    client, rows = Client(server.url), []

    def on_event(event, data):
        if event == "progress_state" and "6" in data["nodes"]:
            rows.append((data["nodes"]["6"]["value"], data["nodes"]["6"]["max"]))

    result = client.run(saved(graphs.film(frames=33)), on_event)
    assert result.success, result.describe()
    # Three rows in each of three windows; the server sends some of the events on the way.
    assert rows[-1] == (9, 9) and len({value for value, _ in rows}) >= 3
    assert (server.output_folder / result.files[0].relative).stat().st_size > 1000


def test_interrupt_is_honoured_and_the_next_film_is_made(server):
    client, rows = Client(server.url), []

    def on_event(event, data):
        if event == "progress_state" and "6" in data["nodes"]:
            rows.append(data["nodes"]["6"]["value"])
            if len(rows) == 3:
                request = urllib.request.Request(server.url + "/interrupt", method="POST")
                urllib.request.urlopen(request).close()

    result = client.run(saved(graphs.film(frames=65, steps=200)), on_event)
    assert result.interrupted and not result.files
    assert max(rows) < 100
    assert client.run(saved(graphs.film()), lambda event, data: None).success


def texts_on_nodes(client, prompt):
    """The texts that reach the page, by the node that they are shown on; and the result."""
    socket, texts = client._listen(), {}
    try:
        entry = client._finished(client.queue(prompt))
        with contextlib.suppress(TimeoutError):
            while True:
                message = socket.receive(timeout=1)
                if isinstance(message, bytes) and message[:4] == TEXT_EVENT:
                    (length,) = struct.unpack_from(">I", message, 4)
                    node, text = message[8 : 8 + length].decode(), message[8 + length :].decode()
                    texts.setdefault(node, []).append(text)
    finally:
        socket.close()
    return texts, outcome.result(entry["status"]["messages"], entry["outputs"])


def test_a_film_that_was_saved_as_latents_says_at_the_page_what_it_lost(server):
    """ComfyUI saves the numbers of a LATENT alone."""
    client, film = Client(server.url), graphs.film(frames=33)
    saved_there = film | {"8": graphs.node("SaveLatent", samples=["6", 0], filename_prefix="film")}
    del saved_there["7"]
    assert client.run(saved_there, lambda event, data: None).success
    (made,) = server.output_folder.glob("film*.latent")
    shutil.copy(made, server.output_folder.parent / "input" / "film.latent")
    again = {
        "3": film["3"],
        "6": graphs.node("LoadLatent", latent="film.latent"),
        "7": graphs.node("SkyReelsV2Decode", samples=["6", 0], vae=["3", 0]),
        "9": graphs.node("PreviewImage", images=["7", 0]),
    }
    texts, result = texts_on_nodes(client, again)
    assert result.success, result.describe()
    assert any("brings no record of its windows" in text for text in texts["7"]), texts


def test_without_a_websocket_the_history_is_polled_and_files_are_fetched(
    server, tmp_path, monkeypatch
):
    """As behind a gateway that passes no websocket on."""
    monkeypatch.setattr(Client, "_listen", lambda self: None)
    client = Client(server.url)
    result = client.run(saved(graphs.film()), lambda event, data: None)
    assert result.success
    path = client.download(result.files[0], tmp_path)
    assert path.read_bytes() == (server.output_folder / result.files[0].relative).read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]


def test_a_refused_and_a_lost_prompt(server, monkeypatch):
    monkeypatch.setattr(remote, "POLL_SECONDS", 0.01)
    client = Client(server.url)
    broken = graphs.film()
    broken["4"]["inputs"]["clip"] = ["3", 0]
    with pytest.raises(InvalidPrompt, match="clip"):
        client.queue(saved(broken))
    with pytest.raises(SetupError, match="no longer knows"):
        client._finished("no-such-prompt")


def dev(*arguments):
    command = [sys.executable, str(ROOT / "dev.py"), "run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no colon in names of files")
def test_dev_run_sets_an_omitted_input_and_finds_a_film_of_any_name(tmp_path):
    prompt = saved(graphs.film())
    assert "seconds" not in prompt["5"]["inputs"]
    workflow = tmp_path / "film.json"
    workflow.write_text(json.dumps(prompt))
    run = [workflow, "--output", tmp_path / "out", "--set", "9.filename_prefix=shots/take 1: dawn"]
    done = dev(*run, "--set", "5.seconds=0.4")
    assert done.returncode == 0, done.stderr
    (film,) = (tmp_path / "out" / "shots").iterdir()
    assert film.name.startswith("take 1: dawn") and str(film) in done.stdout
    assert len(measure.read_film(film)) == 10


def test_a_host_in_this_process_says_what_its_nodes_take(host):
    inputs = inprocess.inputs_of("SkyReelsV2Schedule")
    assert {"frames", "seconds"} <= set(inputs) and inprocess.inputs_of("NoSuchNode") is None


def test_dev_run_against_a_server(server, tmp_path):
    workflow = tmp_path / "film.json"
    workflow.write_text(json.dumps(saved(graphs.film())))
    run = [workflow, "--host", server.url, "--output", tmp_path / "out"]
    done = dev(*run, "--set", "4.prompt=a green circle moving up on a grey background")
    assert done.returncode == 0, done.stderr
    (film,) = (tmp_path / "out").rglob("*.mp4")
    assert str(film) in done.stdout and "SkyReelsV2Sampler" in done.stdout
    assert b"a green circle" in film.read_bytes()
    done = dev(*run, "--set", '1.model_name="absent.safetensors"')
    assert done.returncode == 2
    assert "SkyReelsV2ModelLoader" in done.stderr and "absent.safetensors" in done.stderr
    done = dev(*run, "--set", "5.secondz=2")
    assert done.returncode == 2
    assert "SkyReelsV2Schedule" in done.stderr and "seconds" in done.stderr
    done = dev(*run, "--set", "5.window=18")
    assert done.returncode == 3
    assert all(word in done.stderr for word in ("5", "SkyReelsV2Schedule", "18", "nearest: 17"))
