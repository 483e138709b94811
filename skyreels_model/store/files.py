"""Files that are whole or not there: written under another name, synced, renamed, and checked.

A file is a safetensors file whose metadata say what it is, with a checksum of its tensors and of
what they say. So no index is needed that could contradict the files.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .digests import digest

FORMAT = 1
ENDING, UNFINISHED = ".safetensors", ".part"
ABOUT, CHECKSUM = "about", "checksum"


class Damaged(ValueError):
    """A file of a store is not as it was written."""


def write(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and what they are; after a crash at any moment the file is whole, or the old.

    Raises OSError where the disk is full or the folder is gone or read-only; then nothing is left
    of the new file.
    """
    text = json.dumps({"format": FORMAT, **about}, sort_keys=True)
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(kept, {ABOUT: text, CHECKSUM: _checksum(kept, text)})
    write_bytes(path, content)


def write_bytes(path: Path, content: bytes) -> None:
    """As `write`, any bytes."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError):
            why = f"a film could not be saved: {error.strerror or error}; what was saved is whole"
            raise OSError(error.errno, why, str(path.parent)) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Let the renaming itself survive a power cut, where the system can."""
    if os.name == "nt":
        return  # which has no handle on a folder
    with contextlib.suppress(OSError):  # some network drives refuse
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, in memory of their own, and what they are.

    Raises Damaged where the file is not as it was written, OSError where it cannot be read.
    """
    with _opened(path) as file:
        text, checksum = _metadata(path, file)
        tensors = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    if _checksum(tensors, text) != checksum:
        raise Damaged(f"{path.name} has been changed, or its disk has lost bits")
    return tensors, _about(path, text)


def read_about(path: Path) -> dict[str, Any]:
    """What a file says of itself, its tensors not read nor checked."""
    with _opened(path) as file:
        return _about(path, _metadata(path, file)[0])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise FileNotFoundError(f"{path.name} is not there")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise Damaged(f"{path.name} is cut off or no file of a film: {error}") from error


def _metadata(path: Path, file: Any) -> tuple[str, str]:
    found = file.metadata() or {}
    if ABOUT not in found or CHECKSUM not in found:
        raise Damaged(f"{path.name} does not say what it is")
    return found[ABOUT], found[CHECKSUM]


def _about(path: Path, text: str) -> dict[str, Any]:
    try:
        about = json.loads(text)
    except ValueError as error:
        raise Damaged(f"{path.name} says nothing of itself that can be read") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise Damaged(f"{path.name} was written by another version of this pack")
    return about


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    return digest([dict(tensors), text])


def remove(path: Path) -> None:
    """Remove a file that another has replaced; nothing where it is gone, or held by someone."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
