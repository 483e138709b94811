"""Child processes: their environment, and an interrupt that reaches them exactly once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from devtools import cache

INTERRUPTED = 130
# STATUS_CONTROL_C_EXIT: what Windows gives for a process that Ctrl-C or Ctrl-Break ended.
WINDOWS_INTERRUPTED = 0xC000013A


def child_environment(offline: bool) -> dict[str, str]:
    """This process's environment with every tool's cache kept out of the repository."""
    caches = cache.root()
    environment = {
        # Threads that wait by spinning slow everything down manifold once another process is busy.
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        "PYTHONPYCACHEPREFIX": str(caches / "pycache"),
        "PYTHONUNBUFFERED": "1",
        "PYTHONUTF8": "1",
        "RUFF_CACHE_DIR": str(caches / "ruff"),
        "MYPY_CACHE_DIR": str(caches / "mypy"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
    if offline:
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def start(
    command: Sequence[str | Path], offline: bool, log: Path | None = None
) -> subprocess.Popen:
    """Start `command` in a process group of its own, so that the shell's Ctrl-C is ours to pass on.

    Its output goes to this process's, or to the file `log`.
    """
    options: dict = {"env": child_environment(offline), "stdin": subprocess.DEVNULL}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP
    else:
        options["start_new_session"] = True
    arguments = [str(part) for part in command]
    if log is None:
        return subprocess.Popen(arguments, **options)
    with open(log, "wb") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, **options)


def interrupt(child: subprocess.Popen) -> None:
    """Pass Ctrl-C on to `child`."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        child.send_signal(signal.SIGINT)


def stop(child: subprocess.Popen, patience: float = 5.0) -> None:
    """End `child`: ask, ask firmly, then kill; `patience` seconds after each of the first two."""
    for ask in (lambda: interrupt(child), child.terminate, child.kill):
        ask()
        try:
            child.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue


def wait(child: subprocess.Popen) -> int:
    """Wait for `child`, passing interrupts on to it; its exit code, 130 when a signal ended it."""
    with _passing_on_signals(child):
        while True:
            try:
                # On Windows an unbounded wait would not let the signal handler run.
                code = child.wait(0.5)
                break
            except subprocess.TimeoutExpired:
                continue
    return exit_code(code)


def exit_code(code: int) -> int:
    """What a shell makes of a child's return code: positive, 130 when a signal ended it."""
    signals = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", -1))
    return INTERRUPTED if -code in signals or code == WINDOWS_INTERRUPTED else abs(code)


@contextmanager
def _passing_on_signals(child: subprocess.Popen) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        # A request to end goes on as it is: a child that a script started in the background
        # inherits that Ctrl-C is ignored, and would never stop.
        if sys.platform != "win32" and number != signal.SIGINT and child.poll() is None:
            child.send_signal(number)
        else:
            interrupt(child)

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
