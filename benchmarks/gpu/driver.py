"""Runs sections in a worker process, and goes on with the next where one hangs or dies.

A fault of a kernel spoils the process it happens in, so no section shares one with what a fault
has spoiled. The rows come as lines of the worker's output.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any

from .report import Report
from .sections import Section

MARK = "benchmark "  # begins the lines that are for the driver
GRACE = 10.0  # seconds beyond its time in which a section may still end by itself


def send(kind: str, **content: Any) -> None:
    """Tell the driver something from a worker: a row, or which section begins or ends."""
    print(f"{MARK}{json.dumps({'kind': kind, **content})}", flush=True)


class Worker:
    """A process that runs sections, in a process group of its own, and its lines."""

    def __init__(self, command: Sequence[str], log: pathlib.Path) -> None:
        self.log = log
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next message; {} where none came in time, None where the process has ended."""
        until = time.time() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.0, until - time.time()))
            except queue.Empty:
                return {}
            if line is None:
                return None
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])
            # Chatter of libraries; the log has what went wrong.
            with self.log.with_name("output.txt").open("a", encoding="utf-8") as output:
                output.write(line)

    def stop(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()

    def last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1][:160] if lines else ""


def run_all(sections: list[Section], command: list[str], report: Report, until: float) -> None:
    """Run the sections, by new workers as often as it takes, until the time is up.

    command: what starts a worker; it is given `--until` and `--worker` with the sections' names.
    """
    left = list(sections)
    while left and time.time() < until:
        begun = run_some(left, command, report, until)
        left = left[begun:]
    for section in left:
        report.add(section, {section.columns[0]: "left out", "note": "no time left"})


def run_some(sections: list[Section], command: list[str], report: Report, until: float) -> int:
    """Run sections in one worker; returns how many of them are done, well or not, at least one."""
    names = [section.name for section in sections]
    given = ["--until", repr(until), "--worker", *names]
    worker = Worker([*command, *given], report.folder / "log.txt")
    index, limit = 0, until
    try:
        while True:
            message = worker.next(max(0.0, limit + GRACE - time.time()))
            section = sections[min(index, len(sections) - 1)]
            if message is None:
                if worker.process.wait() or index < len(sections):
                    said = f"the process ended: {worker.last_words()}"
                    report.add(section, {section.columns[0]: "failed", "note": said})
                    index += 1
                return index
            if not message:
                report.add(section, {section.columns[0]: "stopped", "note": "took too long"})
                return index + 1
            if message["kind"] == "begin":
                limit = min(until, time.time() + section.seconds)
            elif message["kind"] == "end":
                index, limit = index + 1, until
            else:
                report.add(section, message["cells"])
    finally:
        worker.stop()
