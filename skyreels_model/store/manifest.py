"""What film a folder holds, for whoever did not make it: its plan, and the names of its windows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..plan.film_plan import FilmPlan
from ..plan.shots import Shot
from . import files
from .keys import WindowKey
from .windows import StoredWindows

MANIFEST = "film.json"


@dataclass(frozen=True)
class StoredFilm:
    """A film in its folder, finished or not.

    windows: the files of its windows, in the order in which they are made. extends: as in
    `rollout.parts.window_parts`.
    """

    folder: Path
    plan: FilmPlan
    windows: tuple[str, ...]
    extends: bool

    @property
    def count(self) -> int:
        """How many of its windows are there, from the first on."""
        there = [(self.folder / name).exists() for name in self.windows]
        return [*there, False].index(False)

    def finished(self) -> StoredWindows:
        """Those windows, each read when it is asked for."""
        found = StoredWindows(lambda i: files.read(self.folder / self.windows[i])[0]["latents"])
        found.count = self.count
        return found


def write_manifest(
    folder: Path, plan: FilmPlan, keys: Sequence[WindowKey], extends: bool = False
) -> None:
    """Write down what film is being made in a folder, in place of the one before."""
    about = {
        "format": files.FORMAT,
        "plan": dataclasses.asdict(plan),
        "windows": [f"window_{key.name}{files.ENDING}" for key in keys],
        "extends": extends,
    }
    files.write_bytes(folder / MANIFEST, json.dumps(about, indent=1).encode())


def read_manifest(folder: Path) -> StoredFilm:
    """The film of a folder.

    Raises FileNotFoundError where there is none, `files.Damaged` where what is there says nothing.
    """
    path = folder / MANIFEST
    text = path.read_bytes()
    try:
        about = json.loads(text)
        if about["format"] != files.FORMAT:
            raise files.Damaged(f"{MANIFEST} was written by another version of this pack")
        numbers = about["plan"]
        numbers["shots"] = tuple(Shot(**shot) for shot in numbers["shots"])
        for name in ("pictures", "sigmas"):
            numbers[name] = tuple(numbers[name])
        names = tuple(str(Path(name).name) for name in about["windows"])
        return StoredFilm(folder, FilmPlan(**numbers), names, bool(about["extends"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, files.Damaged):
            raise
        raise files.Damaged(f"{MANIFEST} does not say what film it is: {error}") from error
