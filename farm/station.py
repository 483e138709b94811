"""A ComfyUI for one group of GPUs: started, given a film, looked at, and ended. No Ray in here."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
START_SECONDS = 300.0
IN_USE = "address already in use"
PORTS = 3  # that are tried, where another program takes one first
STORES = "skyreels_v2_films"
LEFT_OUT = (".lock", ".part")
TAIL = 600  # characters of a log
Stamp = tuple[int, int]  # of a file: its size, and when it was written


@dataclass
class Look:
    """How a film stands. new: files of its stores that are not known yet, by their names.

    stamps: of all its stores' files. results: what the graph saved, once it is done.
    """

    state: str
    error: str = ""
    windows: tuple[int, int] = (0, 0)
    new: dict[str, bytes] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)
    results: dict[str, bytes] = field(default_factory=dict)


class Refused(ValueError):
    """ComfyUI does not take the graph; it would not elsewhere."""


class Station:
    """command: ComfyUI's, without port and output folder: `python main.py …`.

    folder: of this worker alone; a temporary one where it is empty. It listens on this machine's
    own address only.
    """

    def __init__(self, command: Sequence[str], folder: str = "") -> None:
        self.command = list(command)
        self.folder = Path(folder or tempfile.mkdtemp(prefix="skyreels-v2-farm-"))
        self.output = self.folder / "output"
        self.output.mkdir(parents=True, exist_ok=True)
        self.child: subprocess.Popen[bytes] | None = None
        self.url = self.job = ""
        self.stores: list[str] = []

    def start(self) -> str:
        """Start ComfyUI, or see that it runs; this machine's name. OSError where it does not."""
        if self.child is not None and self.child.poll() is None:
            return socket.gethostname()
        for left in reversed(range(PORTS)):
            try:
                self._start_on(find_port())
                return socket.gethostname()
            except OSError as error:
                self.stop()
                if not left or IN_USE not in f"{error} {self._read_tail()}".lower():
                    raise
        raise AssertionError

    def _start_on(self, port: int) -> None:
        self.url = f"http://{LOOPBACK}:{port}"
        given = ["--listen", LOOPBACK, "--port", str(port), "--output-directory", str(self.output)]
        parent = os.getpid()
        with (self.folder / "comfyui.log").open("wb") as log:
            self.child = subprocess.Popen(
                [*self.command, *given],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=(lambda: end_with(parent)) if sys.platform == "linux" else None,
            )
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            if self.child.poll() is not None:
                code = self.child.returncode
                raise OSError(f"ComfyUI ended with code {code}: {self._read_tail()}")
            if time.monotonic() > end:
                raise OSError(f"ComfyUI did not answer in {START_SECONDS:g} s: {self._read_tail()}")
            time.sleep(0.2)

    def begin(
        self, prompt: Mapping[str, Any], stores: Sequence[str], stored: Mapping[str, bytes]
    ) -> None:
        """Queue a film, after what others have made of it is in its stores' folders."""
        self.stores = list(stores)
        for name, content in stored.items():
            path = self.output / STORES / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            answer = self._ask("/prompt", {"prompt": prompt, "client_id": "farm"})
        except urllib.error.HTTPError as error:
            raise Refused(explain_refusal(error.read())) from None
        self.job = answer["prompt_id"]

    def look(self, known: Mapping[str, Stamp]) -> Look:
        """How the film stands, and what is new of its stores. OSError where ComfyUI is gone."""
        record = self._ask(f"/history/{self.job}").get(self.job)
        stamps = self._list_stores()
        new = {n: self._read(n) for n, stamp in stamps.items() if known.get(n) != stamp}
        seen = Look("running", windows=self._count_windows(), stamps=stamps)
        seen.new = {name: content for name, content in new.items() if content is not None}
        if record is None:
            return seen
        error = find_error(record)
        if error:
            seen.state, seen.error = "failed", error
        else:
            seen.state, seen.results = "done", self._read_results(record)
        return seen

    def stop(self) -> None:
        """End ComfyUI and all that it has started."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            self.child = None

    def _list_stores(self) -> dict[str, Stamp]:
        found = {}
        for store in self.stores:
            for path in sorted((self.output / STORES / store).glob("**/*")):
                with contextlib.suppress(OSError):  # replaced by the next one meanwhile
                    status = path.stat()
                    if path.is_file() and path.suffix not in LEFT_OUT:
                        name = path.relative_to(self.output / STORES).as_posix()
                        found[name] = (status.st_size, status.st_mtime_ns)
        return found

    def _read(self, name: str) -> bytes | None:
        with contextlib.suppress(OSError):
            return (self.output / STORES / name).read_bytes()
        return None

    def _count_windows(self) -> tuple[int, int]:
        there = total = 0
        for store in self.stores:
            folder = self.output / STORES / store
            with contextlib.suppress(OSError, ValueError):
                names = json.loads((folder / "film.json").read_text(encoding="utf-8"))["windows"]
                total += len(names)
                there += sum((folder / name).exists() for name in names)
        return there, total

    def _read_results(self, record: Mapping[str, Any]) -> dict[str, bytes]:
        found = {}
        for output in record["outputs"].values():
            files = [f for files in output.values() for f in files if isinstance(f, dict)]
            for file in files:
                if file.get("type") == "output" and "filename" in file:
                    path = self.output / file.get("subfolder", "") / file["filename"]
                    found[path.name] = path.read_bytes()
        return found

    def _answers(self) -> bool:
        try:
            told = self._ask("/system_stats")
        except OSError:
            return False
        if str(self.output) not in told.get("system", {}).get("argv", ()):
            raise OSError(f"{IN_USE}: another program answers at {self.url}")
        return True

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, content, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def _read_tail(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "comfyui.log").read_text(errors="replace").strip()[-TAIL:]
        return ""


def end_with(parent: int) -> None:
    """From now on this process ends when its parent does (Linux)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def find_port() -> int:
    """A port of this machine's own address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def explain_refusal(content: bytes) -> str:
    """What ComfyUI says of a graph that it does not take."""
    told = json.loads(content)
    wrong = [
        f"{node['class_type']}: {error['message']}: {error['details']}"
        for node in told.get("node_errors", {}).values()
        for error in node["errors"]
    ]
    return "; ".join(wrong) or str(told["error"]["message"])


def find_error(record: Mapping[str, Any]) -> str:
    """What a finished job failed with; empty where it did not."""
    for event, data in record["status"]["messages"]:
        if event == "execution_error":
            return f"{data['node_type']}: {data['exception_message']}".strip()
        if event == "execution_interrupted":
            return "somebody cancelled it"
    return ""
