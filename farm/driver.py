"""Hands films to workers, collects what they make, and keeps the state of all in one file."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from .films import DONE, FAILED, Film, Queue, store_names
from .station import Look, Refused, Stamp

LOOK_EVERY = 2.0  # seconds
STATE, STORES, FILMS = "farm.json", "stores", "films"


class Lost(Exception):
    """A worker, or what it runs, is gone."""


class Gone(Exception):
    """The cluster is gone, with all workers."""


class Worker(Protocol):
    """A `Station` somewhere. Each call raises Lost or Gone; Refused and OSError come through."""

    name: str

    def start(self) -> str: ...

    def begin(
        self, prompt: Mapping[str, Any], stores: Sequence[str], stored: Mapping[str, bytes]
    ) -> None: ...

    def look(self, known: Mapping[str, Stamp]) -> Look: ...

    def restart(self) -> None:
        """Put a new one in the place of one that is lost."""


class Farm:
    """folder: where films, stores and the state of all lie. say: is told a line for people."""

    def __init__(
        self, queue: Queue, workers: Sequence[Worker], folder: Path, say: Callable[[str], None]
    ) -> None:
        self.queue, self.workers, self.folder, self.say = queue, list(workers), folder, say
        self.at_work: dict[str, Film] = {}  # by the worker's name
        self.known: dict[str, dict[str, Stamp]] = {}
        self.told: dict[str, str] = {}
        self.lock = threading.RLock()  # of the queue: workers are asked side by side
        recall(queue, folder)

    def run(self, every: float = LOOK_EVERY) -> bool:
        """Make all films; whether every one was made. Gone where the cluster goes away."""
        self.report()
        with ThreadPoolExecutor(max(1, len(self.workers))) as pool:
            while self.queue.open:
                if not self.workers:
                    raise Gone("no worker is left")
                list(pool.map(self.step, list(self.workers)))
                self.report()
                if self.queue.open:
                    time.sleep(every)
        return all(film.state == DONE for film in self.queue.films)

    def step(self, worker: Worker) -> None:
        """Look at what a worker makes, or give it something to make."""
        film = self.at_work.get(worker.name)
        try:
            if film is None:
                self.give(worker)
            else:
                self.look(worker, film)
        except (Lost, OSError) as error:
            self.lose(worker, str(error))

    def give(self, worker: Worker) -> None:
        with self.lock:
            film = self.queue.take(worker.name, {each.name for each in self.workers})
        if film is None:
            return
        self.at_work[worker.name], self.known[film.name] = film, {}
        worker.start()
        try:
            worker.begin(film.prompt, store_names(film), self.read_stores(film))
        except Refused as error:
            with self.lock:
                self.end(worker)
                self.queue.fail(film, str(error), final=True)

    def look(self, worker: Worker, film: Film) -> None:
        seen = worker.look(self.known[film.name])
        film.progress = seen.windows
        self.keep_stores(film, seen)
        files = self.keep_results(film, seen.results)
        with self.lock:
            if seen.state != "running":
                self.end(worker)
            if seen.state == "done":
                self.queue.finish(film, files)
            elif seen.state == "failed":
                self.queue.fail(film, seen.error)

    def end(self, worker: Worker) -> None:
        del self.at_work[worker.name]

    def lose(self, worker: Worker, why: str) -> None:
        """Its film goes back to the queue, and another worker in its place."""
        with self.lock:
            film = self.at_work.pop(worker.name, None)
            self.say(f"{worker.name} is lost: {why}")
            if film is not None:
                self.queue.lose(film)
        try:
            worker.restart()
        except Lost as error:
            with self.lock:
                self.say(f"{worker.name} cannot be started again: {error}")
                self.workers.remove(worker)

    def read_stores(self, film: Film) -> dict[str, bytes]:
        """What was collected of a film's stores."""
        root = self.folder / STORES
        paths = [p for name in store_names(film) for p in sorted((root / name).glob("**/*"))]
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths if p.is_file()}

    def keep_stores(self, film: Film, seen: Look) -> None:
        for name, content in seen.new.items():
            write(self.folder / STORES / name, content)
            self.known[film.name][name] = seen.stamps[name]
        # A window that is finished has no rows any more.
        root = self.folder / STORES
        for name in sorted(set(self.known[film.name]) - set(seen.stamps)):
            del self.known[film.name][name]
            (root / name).unlink(missing_ok=True)

    def keep_results(self, film: Film, results: Mapping[str, bytes]) -> list[str]:
        for name, content in results.items():
            write(self.folder / FILMS / film.name / name, content)
        return sorted(results)

    def report(self) -> None:
        """Say what has changed, and write the state of all films."""
        for film in self.queue.films:
            line = film.describe()
            if self.told.get(film.name) != line:
                self.told[film.name] = line
                self.say(line)
        state = {
            film.name: {
                "state": film.state,
                "worker": film.worker,
                "windows": film.progress,
                "errors": film.errors,
                "workers lost": film.lost,
                "files": film.files,
                "prompt": film.prompt,
            }
            for film in self.queue.films
        }
        write(self.folder / STATE, json.dumps(state, indent=1).encode())


def recall(queue: Queue, folder: Path) -> None:
    """Leave out what an earlier run into this folder has made, of the same graphs."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    for film in queue.films:
        before = state.get(film.name, {})
        if before.get("state") == DONE and before.get("prompt") == film.prompt:
            there = all((folder / FILMS / film.name / name).exists() for name in before["files"])
            if there:
                film.state, film.files = DONE, before["files"]
                film.progress = (before["windows"][0], before["windows"][1])


def summarize(queue: Queue) -> str:
    """How many were made, and what was not."""
    made = sum(film.state == DONE for film in queue.films)
    lines = [f"{made} of {len(queue.films)} films were made"]
    lines += [film.describe() for film in queue.films if film.state == FAILED]
    return "\n".join(lines)


def write(path: Path, content: bytes) -> None:
    """A file that is whole or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
