"""Films over machines: who makes what, what is collected, and what happens to failures."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from farm import cluster, films, station
from farm.driver import Farm, Gone, Lost
from farm.films import DONE, FAILED, Queue, read_films
from farm.station import Look, Refused, Station

ROOT = Path(__file__).resolve().parents[2]
FILM = ROOT / "workflows" / "api" / "film_from_text.json"
WINDOWS = 3


def write_films(folder, *names):
    for name in names:
        (folder / f"{name}.json").write_text(FILM.read_text(encoding="utf-8"), encoding="utf-8")
    return [folder / f"{name}.json" for name in names]


class Worker:
    """Makes a window each time that it is looked at, and does what its script says instead.

    script: by film, what becomes of each try: an error to raise, a text that the film fails with.
    """

    def __init__(self, name, script, begun, can_restart=True):
        self.name, self.script, self.begun, self.can_restart = name, script, begun, can_restart

    def start(self):
        return "here"

    def begin(self, prompt, stores, stored):
        (self.film,) = stores
        self.begun.append((self.name, self.film, sorted(stored)))
        self.windows = dict(stored)
        tries = self.script.get(self.film, [])
        self.end = tries.pop(0) if tries else None
        if isinstance(self.end, Refused):
            raise self.end

    def look(self, known):
        if len(self.windows) == 1 and self.end:
            if isinstance(self.end, Exception):
                raise self.end
            return self.show("failed", known, self.end)
        name = f"{self.film}/window_{len(self.windows)}"
        self.windows[name] = name.encode()
        return self.show("done" if len(self.windows) >= WINDOWS else "running", known)

    def show(self, state, known, error=""):
        stamps = {name: (len(content), 1) for name, content in self.windows.items()}
        new = {n: c for n, c in self.windows.items() if known.get(n) != stamps[n]}
        results = {f"{self.film}.mp4": b"film"} if state == "done" else {}
        return Look(state, error, (len(self.windows), WINDOWS), new, stamps, results)

    def restart(self):
        if not self.can_restart:
            raise Lost("no machine")


@pytest.fixture
def make_farm(tmp_path):
    """`make_farm(names, scripts, ...)` -> the farm, what was begun, and what was said."""

    def make(names, *scripts, **how):
        begun, said = [], []
        queue = Queue(read_films(write_films(tmp_path, *names)))
        workers = [Worker(f"worker {n}", s, begun, **how) for n, s in enumerate(scripts, 1)]
        return Farm(queue, workers, tmp_path / "out", said.append), begun, said

    return make


def test_all_films_are_made_and_their_state_is_in_one_file(make_farm):
    farm, begun, said = make_farm(["a", "b", "c"], {}, {})
    assert farm.run(every=0)
    assert sorted(film for _, film, _ in begun) == ["a", "b", "c"]
    assert {worker for worker, _, _ in begun} == {"worker 1", "worker 2"}
    assert (farm.folder / "films" / "a" / "a.mp4").read_bytes() == b"film"
    state = json.loads((farm.folder / "farm.json").read_text(encoding="utf-8"))
    assert {name: each["state"] for name, each in state.items()} == dict.fromkeys("abc", DONE)
    assert "b: done, 3 of 3 windows" in said


def test_a_film_that_fails_is_made_elsewhere_from_what_there_is(make_farm):
    farm, begun, _ = make_farm(["a"], {"a": ["out of memory"]}, {})
    assert farm.run(every=0)
    assert begun == [("worker 1", "a", []), ("worker 2", "a", ["a/window_0"])]


def test_a_film_whose_worker_is_lost_goes_on_from_what_was_collected(make_farm):
    farm, begun, said = make_farm(["a"], {"a": [Lost("its machine is off")]})
    assert farm.run(every=0)
    assert begun == [("worker 1", "a", []), ("worker 1", "a", ["a/window_0"])]
    assert "worker 1 is lost: its machine is off" in said


def test_a_film_that_fails_everywhere_is_given_up_and_others_are_made(make_farm):
    bad = ["no room"] * 5
    farm, begun, said = make_farm(["bad", "good"], {"bad": bad}, {"bad": bad})
    assert not farm.run(every=0)
    assert [film.state for film in farm.queue.films] == [FAILED, DONE]
    assert len([film for _, film, _ in begun if film == "bad"]) == films.TRIES
    assert "bad: failed, 1 of 3 windows: no room" in said


def test_a_graph_that_comfyui_refuses_is_not_tried_again(make_farm):
    farm, begun, _ = make_farm(["a"], {"a": [Refused("seed: -1")]}, {})
    assert not farm.run(every=0)
    assert len(begun) == 1 and farm.queue.films[0].errors == ["seed: -1"]


def test_a_cluster_that_goes_away_ends_it_and_the_next_run_goes_on(make_farm):
    farm, begun, _ = make_farm(["a", "b"], {"b": [Gone("no answer")]})
    with pytest.raises(Gone, match="no answer"):
        farm.run(every=0)
    again, begun, _ = make_farm(["a", "b"], {})
    assert again.run(every=0)
    assert begun == [("worker 1", "b", ["b/window_0"])]


def test_without_workers_that_come_back_it_ends(make_farm):
    farm, _, said = make_farm(["a"], {"a": [Lost("off")]}, can_restart=False)
    with pytest.raises(Gone, match="no worker is left"):
        farm.run(every=0)
    assert "worker 1 cannot be started again: no machine" in said


def test_a_changed_graph_is_made_again(make_farm, tmp_path):
    make_farm(["a"], {})[0].run(every=0)
    farm, begun, _ = make_farm(["a"], {})
    farm.queue.films[0].prompt["6"]["inputs"]["seed"] = 8
    farm = Farm(Queue([dataclasses.replace(farm.queue.films[0], state="waiting")]), farm.workers,
                farm.folder, print)  # fmt: skip
    assert farm.run(every=0) and len(begun) == 1


def test_each_sampler_gets_a_store_of_the_films_name(tmp_path):
    (film,) = read_films(write_films(tmp_path, "night"))
    assert films.store_names(film) == ["night"]
    # A store that is there is kept, but for its name, which is the film's.
    prompt = films.add_store("other", film.prompt)
    assert prompt.keys() == film.prompt.keys()
    assert films.store_names(films.Film("other", prompt)) == ["other"]


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("a", "{", "cannot be read as JSON"),
        ("a", '{"nodes": [], "links": []}', "no workflow in API form"),
        ("a", "[]", "no workflow in API form"),
        ("a", '{"1": {"class_type": "KSampler", "inputs": {}}}', "no SkyReels-V2 Sampler"),
        (".hidden", "{}", "it must be letters, digits"),
    ],
)
def test_what_is_no_film_is_told_before_anything_starts(tmp_path, name, content, told):
    path = tmp_path / f"{name}.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        read_films([path])


def test_two_films_of_one_name_are_refused(tmp_path):
    (path,) = write_films(tmp_path, "a")
    with pytest.raises(ValueError, match="two films are called 'a'"):
        read_films([path, path])


class Cluster:
    """What `count_workers` asks of Ray."""

    def __init__(self, gpus):
        self.gpus = gpus

    def cluster_resources(self):
        return {"CPU": 8.0, **({"GPU": self.gpus} if self.gpus else {})}


@pytest.mark.parametrize(
    "there, asked, gpus, workers", [(8.0, 0, 2, 4), (8.0, 3, 2, 3), (0, 2, 0, 2)]
)
def test_workers_are_as_many_as_the_gpus_make(there, asked, gpus, workers):
    assert cluster.count_workers(Cluster(there), asked, gpus) == workers


@pytest.mark.parametrize(
    "there, asked, gpus, told",
    [
        (4.0, 3, 2, "workers is 3 with 2 GPUs each; .* 4 GPUs; nearest: 2"),
        (1.0, 0, 2, "workers is 0 with 2 GPUs each; .* nearest: 0"),
        (0, 0, 0, "give one of the two"),
    ],
)
def test_workers_that_do_not_fit_the_cluster_are_refused(there, asked, gpus, told):
    with pytest.raises(ValueError, match=told):
        cluster.count_workers(Cluster(there), asked, gpus)


class Lonely:
    """Ray, whose workers are all unavailable, with a head at an address."""

    class exceptions:  # noqa: N801 (Ray's own name)
        RayError, RaySystemError, RayTaskError = (type(n, (Exception,), {}) for n in "abc")

    def __init__(self, head):
        self.head = head

    def remote(self, **_options):
        def raise_error(*_given):
            raise self.exceptions.RayError("unavailable\nmore")

        return lambda _station: types.SimpleNamespace(remote=raise_error)

    def get_runtime_context(self):
        return types.SimpleNamespace(gcs_address=self.head)

    def is_initialized(self):
        return True


def test_a_worker_that_is_lost_is_told_from_a_cluster_without_its_head():
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Lost, match="^unavailable$"):
            cluster.RayWorker(Lonely(head), "a", ["comfyui"], 0)
    with pytest.raises(Gone, match="head does not answer"):
        cluster.RayWorker(Lonely(head), "a", ["comfyui"], 0)


def test_a_cluster_that_was_left_is_not_asked_for():
    """Ray would start one of its own to answer that."""
    lonely = Lonely("127.0.0.1:1")
    lonely.is_initialized = lambda: False
    lonely.get_runtime_context = lambda: pytest.fail("Ray was asked")
    assert not cluster.answers(lonely)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match="Ray is not installed.*pip install ray"):
        cluster.import_ray()


# It listens where the last arguments say, and answers as a ComfyUI with an empty queue.
PROGRAM = """
import http.server, json, sys
given = dict(zip(sys.argv[-6::2], sys.argv[-5::2]))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(json.dumps({"system": {"argv": sys.argv}}).encode())
    def log_message(self, *_): pass
http.server.HTTPServer((given["--listen"], int(given["--port"])), Handler).serve_forever()
"""

pytestmark_linux = pytest.mark.skipif(sys.platform != "linux", reason="as the farm's workers")


@pytestmark_linux
def test_a_port_that_another_program_takes_first_is_left_to_it(tmp_path, monkeypatch):
    taken = Station([sys.executable, "-c", PROGRAM], str(tmp_path / "1"))
    taken.start()
    ports = iter([int(taken.url.rpartition(":")[2]), station.find_port()])
    monkeypatch.setattr(station, "find_port", lambda: next(ports))
    second = Station([sys.executable, "-c", PROGRAM], str(tmp_path / "2"))
    second.start()
    assert second.url != taken.url
    for each in (taken, second):
        process = each.child
        each.stop()
        assert process.returncode is not None


def test_a_comfyui_that_does_not_start_says_why(tmp_path):
    with pytest.raises(OSError, match="ended with code 1: no torch"):
        Station([sys.executable, "-c", "raise SystemExit('no torch')"], str(tmp_path)).start()


OWNER = """
import sys
sys.path.insert(0, {root!r})
from farm.station import Station
station = Station([sys.executable, "-c", {program!r}], {folder!r})
station.start()
print(station.child.pid, flush=True)
input()
"""


@pytestmark_linux
def test_a_comfyui_ends_with_the_worker_that_started_it(tmp_path):
    code = OWNER.format(root=str(ROOT), program=PROGRAM, folder=str(tmp_path))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as owner:
        pid = int(owner.stdout.readline())
        owner.kill()
    ended = threading.Event()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            return
        ended.wait(0.1)
    pytest.fail(f"{pid} outlives {os.getpid()}'s worker")
