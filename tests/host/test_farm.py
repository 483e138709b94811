"""The farm with real ComfyUIs: a station, and a cluster that a real Ray starts and watches."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from farm.films import read_film, store_names
from farm.station import Station

ROOT = Path(__file__).resolve().parents[2]
FILM = ROOT / "workflows" / "api" / "film_from_text.json"
SOON = 120


def write_film(path, frames=49, steps=3):
    """Two windows, in a file of the queue."""
    prompt = json.loads(FILM.read_text(encoding="utf-8"))
    prompt["5"]["inputs"] |= {"frames": frames, "steps": steps, "ar_step": 0}
    path.write_text(json.dumps(prompt), encoding="utf-8")
    return path


@pytest.mark.server
def test_a_station_makes_a_film_and_hands_over_what_there_is(server, tmp_path):
    """Its windows while they are finished, and the film."""
    film = read_film(write_film(tmp_path / "farm film.json"))
    station = Station([], str(tmp_path / "station"))
    station.url, station.output = server.url, server.output_folder
    station.begin(film.prompt, store_names(film), {})
    known, stored, end = {}, {}, time.monotonic() + SOON
    while (seen := station.look(known)).state == "running":
        known |= seen.stamps
        stored |= seen.new
        assert time.monotonic() < end
        time.sleep(0.1)
    assert seen.state == "done" and seen.windows == (2, 2), seen.error
    assert [name[-4:] for name in seen.results] == [".mp4"]
    stored = {name: content for name, content in (stored | seen.new).items() if name in seen.stamps}
    assert {name.split("/")[0] for name in stored} == {"farm film"}
    folder = server.output_folder / "skyreels_v2_films" / "farm film"
    before = {path.name: path.stat().st_mtime_ns for path in sorted(folder.glob("window_*"))}
    assert len(before) == 2 and all(f"farm film/{name}" in stored for name in before)


RAY = """
import sys
sys.path.insert(0, {root!r})
import runpy
sys.argv = ["farm", *{arguments!r}]
runpy.run_module("farm", run_name="__main__")
"""


def find_comfyuis(folder):
    """Pids of the ComfyUIs that were started with this base folder, and how long they run."""
    found = {}
    for entry in sorted(Path("/proc").glob("[0-9]*")):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and b"--port" in words:
            found[int(entry.name)] = words
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the farm's workers are found by /proc")
def test_a_film_of_a_killed_comfyui_is_made_elsewhere(tmp_path):
    """Two workers of a real Ray on this machine; one ComfyUI is killed in the middle of a film."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    from devtools import serving

    comfyui = os.environ.get("COMFYUI_PATH") or pytest.skip("COMFYUI_PATH names no ComfyUI")
    base = serving.prepare_base(tmp_path / "base")
    (base / "empty").mkdir()
    (base / "empty" / "index.html").write_text("<title>ComfyUI</title>")
    command = [sys.executable, ROOT / "devtools" / "server.py", comfyui, "--cpu"]
    command += ["--base-directory", base, "--temp-directory", base, "--disable-api-nodes"]
    command += ["--database-url", "sqlite:///:memory:", "--front-end-root", base / "empty"]
    films = [write_film(tmp_path / f"{name}.json", 257, 16) for name in ("a", "b", "c")]
    given = [*films, "--comfyui", " ".join(map(str, command)), "--gpus", "0", "--workers", "2"]
    arguments = list(map(str, [*given, "--folder", tmp_path / "out"]))
    code = RAY.format(root=str(ROOT), arguments=arguments)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as farm:
        said, killed = [], False
        for line in farm.stdout:
            said.append(line.strip())
            if not killed and "1 of" in line and "running" in line:
                os.kill(min(find_comfyuis(base)), 9)
                killed = True
    assert farm.returncode == 0, said
    assert killed and any("is lost" in line for line in said)
    assert "3 of 3 films were made" in said
    state = json.loads((tmp_path / "out" / "farm.json").read_text(encoding="utf-8"))
    assert sum(film["workers lost"] for film in state.values()) == 1
    assert all((tmp_path / "out" / "films" / name / f["files"][0]).stat().st_size > 0
               for name, f in state.items())  # fmt: skip
    end = time.monotonic() + SOON
    while find_comfyuis(base):
        assert time.monotonic() < end, "a ComfyUI is left behind"
        time.sleep(0.2)
