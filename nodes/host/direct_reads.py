"""Model files as the host likes to have them: it may read weights itself, past their mapping.

Its dynamic memory reads a weight from the file straight into pinned memory, and from there to the
card, where it knows the weight's place. Otherwise it copies from the mapping, which the system
reads page by page, and the pages stay in memory beside the pinned copy.
"""

from __future__ import annotations

import io
import pathlib
import threading

import comfy.memory_management

from ...skyreels_model.files import checkpoint
from ...skyreels_model.files.checkpoint import Checkpoint

ATTRIBUTE = "_comfy_tensor_file_slice"  # of a storage, where the host looks


class _Opened(io.FileIO):
    """A file that is open for as long as a tensor of it is there."""

    def __del__(self) -> None:
        self.close()


def read(path: str | pathlib.Path) -> Checkpoint:
    """`checkpoint.read`, and the host is told where the file's tensors lie.

    What is converted later is another tensor, of which nothing is told.
    """
    file = checkpoint.read(path)
    if getattr(comfy.memory_management, "aimdo_enabled", False):
        _tell_places(file)
    return file


def _tell_places(file: Checkpoint) -> None:
    make = getattr(comfy.memory_management, "TensorFileSlice", None)
    if make is None:
        return
    opened: dict[pathlib.Path, tuple[_Opened, threading.Lock]] = {}
    for tensor in file.tensors.values():
        storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else None
        place = file.places.get(storage.data_ptr()) if storage is not None else None
        if place is None or not tensor.nbytes:
            continue
        if place.file not in opened:
            opened[place.file] = _Opened(place.file), threading.Lock()
        setattr(storage, ATTRIBUTE, make(*opened[place.file], place.offset, tensor.nbytes))
