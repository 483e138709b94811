"""Films through ComfyUI's own sampler under its dynamic memory, each in a process of its own.

The toy film is made on the card and on the processor, everything in float32. A film of 1.3B is made
with all weights on the card, and with so little room that they are streamed: it must be the same.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch

from . import comfyui
from .run import Run
from .timing import error

TOY = "toy film"


def measure(run: Run) -> None:
    with tempfile.TemporaryDirectory(prefix="skyreels-v2-films-") as folder:
        make_films(run, pathlib.Path(folder))


def make_films(run: Run, folder: pathlib.Path) -> None:
    # A rehearsal has one device, hence one film to look at.
    places = ("processor",) if run.rehearse else ("card", "processor")
    processes = {place: _start(run, place, folder) for place in places}
    # Later sections need it; here it is imported while the films are made.
    run.attempt("ComfyUI", lambda: comfyui.boot_for(run.packed, run.rehearse))
    found = {place: _result(process, run, folder / place) for place, process in processes.items()}
    main = found[places[0]]
    for message in main["errors"]:
        run.row(film="failed", note=message)
    run.row(film="ComfyUI's dynamic memory", note="on" if main["dynamic"] else "off")
    _toy_rows(run, folder, found)
    for film in main["large"]:
        run.row(**film)


def _toy_rows(run: Run, folder: pathlib.Path, found: dict[str, dict[str, Any]]) -> None:
    films = {place: folder / place / "toy.pt" for place in found}
    made = {place: torch.load(path) for place, path in films.items() if path.exists()}
    right = made.get("processor")
    for place, latents in made.items():
        apart = None if right is None or place == "processor" else error(latents, right)
        run.row(
            film=f"{TOY}, {place}", seconds=found[place]["toy"], difference=apart, note="float32"
        )


def _start(run: Run, place: str, folder: pathlib.Path) -> subprocess.Popen[bytes]:
    script = str(pathlib.Path(__file__).resolve().parents[1] / "gpu.py")
    target = folder / place
    target.mkdir()
    command = [sys.executable, script, "--film", place, "--out", str(target)]
    command += ["--packed", str(run.packed), *(["--rehearse"] if run.rehearse else [])]
    # What it prints is for the log, as this process's errors are.
    return subprocess.Popen(command, stdout=sys.stderr)


def _result(process: subprocess.Popen[bytes], run: Run, target: pathlib.Path) -> dict[str, Any]:
    """What a process wrote before it ended, or before it was ended for want of time."""
    try:
        code = process.wait(max(1.0, run.until - time.time()))
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    file = target / "films.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    found = {"toy": None, "large": [], "errors": [], "dynamic": False, **found}
    if code:
        found["errors"].append(f"the process on the {target.name} ended with code {code}")
    return found
