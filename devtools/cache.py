"""Where everything fetched lies, and the lock that keeps two runs from building the same thing."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ENV_VARIABLE = "SKYREELS_V2_CACHE"


class SetupError(Exception):
    """Something could not be found, fetched or started; its text is for the person at the shell."""


def root() -> Path:
    """The cache folder: `SKYREELS_V2_CACHE`, else `skyreels-v2` in the user's cache folder."""
    chosen = os.environ.get(ENV_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "skyreels-v2"


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock `name` over processes; waits for whoever has it, and says so.

    It is the operating system's lock on an open file, so a killed run never leaves it behind.
    """
    folder = root()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "a+b") as file:
        if not _acquire(file, wait=False):
            print(f"waiting for another run that is building {name} ...", flush=True)
            _acquire(file, wait=True)
        try:
            yield
        finally:
            _release(file)


if sys.platform == "win32":
    import msvcrt
    import time

    def _acquire(file: IO[bytes], wait: bool) -> bool:
        while True:
            file.seek(0)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                return True
            except OSError:
                if not wait:
                    return False
                time.sleep(0.5)

    def _release(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _acquire(file: IO[bytes], wait: bool) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def _release(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
