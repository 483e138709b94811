"""Files that are being written, told from those that a killed process has left."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is removed
    fcntl = None  # type: ignore[assignment]

UNFINISHED = ".part"
# As the writers and the host's numbers make them; other programs have such endings, too.
_OURS = re.compile(r"_\d{5}_.*\.part")


def unfinished_name(path: Path) -> Path:
    """Under what name a file is written."""
    return path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")


class Claim:
    """A mark on a file or folder that is being written, which goes with the process."""

    def __init__(self, path: Path) -> None:
        self.handle: int | None = None
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network drives have none
                self.handle = os.open(path, os.O_RDONLY)
                fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        handle, self.handle = self.handle, None
        if handle is not None:
            os.close(handle)


def sweep(folder: Path) -> list[Path]:
    """Remove what killed processes have left of videos in a folder; what that was."""
    found = (path for path in sorted(folder.glob(f"*{UNFINISHED}")) if _OURS.search(path.name))
    left = [path for path in found if _is_left(path)]
    for path in left:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return left


def _is_left(path: Path) -> bool:
    """Whether no process writes to it; False where the system cannot tell."""
    if fcntl is None or path.is_symlink():
        return False
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(handle)
