"""What of a film lies on the disk and is read when it is needed, so that memory does not grow."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files.mapped import READ, page_out
from ..grid import TEMPORAL_STRIDE
from ..rollout.parts import Decode, Stretch, decode_stretches


class StoredWindows:
    """A film's finished windows on the disk; the newest in memory until it lies there.

    read: a window's latents (1, C, F, h, w) by its number.
    """

    def __init__(self, read: Callable[[int], Tensor]) -> None:
        self.read, self.count = read, 0
        self.newest: Tensor | None = None

    def append(self, latents: Tensor, /) -> None:
        self.count, self.newest = self.count + 1, latents

    def settle(self) -> None:
        """The newest lies on the disk, too."""
        self.newest = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Tensor:
        if index < 0:
            index += self.count
        if not 0 <= index < self.count:
            raise IndexError(index)
        if index == self.count - 1 and self.newest is not None:
            return self.newest
        return self.read(index)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(self.count))


def decode_from_disk(stretches: Iterable[Stretch], decode: Decode) -> Iterator[Tensor]:
    """As `decode_stretches`, of what a `DiskSink` has joined: it leaves memory as it was read."""
    for stretch in stretches:
        frames = 0  # of which a piece has any number
        for piece in decode_stretches([stretch], decode):
            yield piece
            frames += piece.shape[2]
            if frames >= READ * TEMPORAL_STRIDE:
                page_out(stretch.latents)
                frames = 0


class DiskSink:
    """Gathers latents (1, C, n, h, w) in a nameless file of a folder; one tensor reads from there.

    The file is gone with the tensor, or with the process. Raises OSError where the disk is full.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with self._explain():
            folder.mkdir(parents=True, exist_ok=True)
            self.file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.shape: tuple[int, ...] = ()
        self.count = 0

    def add(self, latents: Tensor) -> None:
        frames = latents[0].movedim(1, 0)  # (n, C, h, w)
        self.shape, self.count = tuple(frames.shape[1:]), self.count + len(frames)
        with self._explain():
            self.file.write(frames.float().contiguous().numpy().data)

    def join(self) -> Tensor:
        """(1, C, F, h, w); who writes to it gets pages of its own."""
        with self._explain(), self.file:
            self.file.flush()
            whole = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)
        numbers = torch.frombuffer(whole, dtype=torch.float32)
        page_out(numbers)
        return numbers.reshape(self.count, *self.shape).movedim(0, 1)[None]

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = f"the film's latents could not be joined on the disk: {error.strerror or error}"
            raise OSError(error.errno, why, str(self.folder)) from error
