"""What is to be made: graphs in API form, each with a store, and what became of them."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Prompt = dict[str, Any]
SAMPLER, STORE = "SkyReelsV2Sampler", "SkyReelsV2Store"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")
SAVE_EVERY = 60.0  # seconds
TRIES = 3  # with errors of a film's own; a worker that is lost is not the film's fault
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


@dataclass
class Film:
    """One graph of the queue.

    errors: what each try ended with. lost: workers that ended while they made it. avoid: workers
    that failed with it, which get it last. progress: windows on disk, of how many.
    """

    name: str
    prompt: Prompt
    state: str = WAITING
    worker: str = ""
    errors: list[str] = field(default_factory=list)
    lost: int = 0
    avoid: set[str] = field(default_factory=set)
    progress: tuple[int, int] = (0, 0)
    files: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """A line for people."""
        windows = f", {self.progress[0]} of {self.progress[1]} windows" if self.progress[1] else ""
        where = f" on {self.worker}" if self.state == RUNNING else ""
        why = f": {self.errors[-1]}" if self.state == FAILED and self.errors else ""
        return f"{self.name}: {self.state}{where}{windows}{why}"


def read_film(path: Path) -> Film:
    """The film of a file, with a store in its graph.

    Raises ValueError for what is no workflow in API form, or has no sampler of ours.
    """
    if not NAME.fullmatch(path.stem):
        raise ValueError(
            f"{path.name} is the name of a film; it must be letters, digits, spaces, - and _, at "
            f"most 64, beginning with a letter or digit"
        )
    try:
        prompt = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    nodes = prompt.values() if isinstance(prompt, dict) else ()
    if not nodes or not all(isinstance(n, dict) and "class_type" in n for n in nodes):
        raise ValueError(
            f"{path.name} is no workflow in API form; in ComfyUI choose Workflow, Export (API)"
        )
    return Film(path.stem, add_store(path.stem, prompt))


def read_films(paths: Sequence[Path]) -> list[Film]:
    """The films of all files, in their order; ValueError where two have one name."""
    films = [read_film(path) for path in paths]
    names = [film.name for film in films]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two films are called {twice[0]!r}; each needs a name of its own")
    if not films:
        raise ValueError("there is no film to make; name files in API form")
    return films


def add_store(name: str, prompt: Prompt) -> Prompt:
    """The graph with a store for each sampler that has none; theirs get the film's name too.

    So that no two films of the queue write into one folder.
    """
    prompt = copy.deepcopy(prompt)
    samplers = sorted(i for i, node in prompt.items() if node["class_type"] == SAMPLER)
    if not samplers:
        raise ValueError(
            f"{name} has no SkyReels-V2 Sampler; the farm makes films that can be resumed, which "
            f"that node does"
        )
    for number in samplers:
        folder = name if len(samplers) == 1 else f"{name} {number}"
        given = prompt[number]["inputs"].get("store")
        if given is None:
            prompt[number]["inputs"]["store"] = [f"farm {number}", 0]
            inputs = {"name": folder, "save_every": SAVE_EVERY, "start_afresh": False}
            prompt[f"farm {number}"] = {"class_type": STORE, "inputs": inputs}
        else:
            # Begun afresh, a film would lose what another worker has made of it.
            inputs = prompt[given[0]]["inputs"]
            inputs |= {"name": folder, "start_afresh": False}
    return prompt


def store_names(film: Film) -> list[str]:
    """The folders that its samplers write into."""
    nodes = film.prompt.values()
    return sorted({n["inputs"]["name"] for n in nodes if n["class_type"] == STORE})


class Queue:
    """The films and who makes them. Knows no machine."""

    def __init__(self, films: Sequence[Film]) -> None:
        self.films = list(films)

    @property
    def open(self) -> list[Film]:
        """Those that are neither made nor given up."""
        return [film for film in self.films if film.state in (WAITING, RUNNING)]

    def take(self, worker: str, workers: Set[str]) -> Film | None:
        """The next film for one of the workers; what failed there goes to others first."""
        for film in self.films:
            elsewhere = worker in film.avoid and workers - film.avoid
            if film.state == WAITING and not elsewhere:
                film.state, film.worker = RUNNING, worker
                return film
        return None

    def finish(self, film: Film, files: Sequence[str]) -> None:
        film.state, film.files = DONE, list(files)

    def fail(self, film: Film, error: str, final: bool = False) -> None:
        """It ended with an error: again, elsewhere if there is one, or given up."""
        film.errors.append(error)
        film.avoid.add(film.worker)
        film.state = FAILED if final or len(film.errors) >= TRIES else WAITING

    def lose(self, film: Film) -> None:
        """Its worker is gone: again, from what was collected of it."""
        film.lost += 1
        film.state = WAITING if film.lost < 2 * TRIES else FAILED
        if film.state == FAILED:
            film.errors.append(f"{film.lost} workers were lost while they made it")
