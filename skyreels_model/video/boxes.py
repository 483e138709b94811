"""The boxes that an mp4 or mov file consists of, and tables in them.

Facts from ISO/IEC 14496-12 and Apple's QuickTime File Format.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

KEPT = 1 << 16  # bytes of a table that stay in memory
LARGE = 1 << 32
PARTED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")  # kinds that hold boxes


class Table:
    """Numbers of 32 bits one after another, in a nameless file once they are many."""

    def __init__(self, folder: Path) -> None:
        self.file: Any = tempfile.SpooledTemporaryFile(KEPT, dir=str(folder))  # noqa: SIM115
        self.size = 0

    def add(self, *numbers: int) -> None:
        self.size += self.file.write(struct.pack(f">{len(numbers)}I", *numbers))

    def __len__(self) -> int:
        return self.size

    def pieces(self) -> Iterator[bytes]:
        self.file.seek(0)
        return iter(lambda: self.file.read(KEPT), b"")


class Runs(Table):
    """How many times each number follows, and the number."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.count = self.number = 0

    def append(self, number: int, count: int = 1) -> None:
        if number != self.number:
            self.close()
            self.number = number
        self.count += count

    def close(self) -> None:
        """Write the last run."""
        if self.count:
            self.add(self.count, self.number % LARGE)
        self.count = 0


Part = bytes | Table


def make_box(kind: bytes, *parts: Part) -> list[Part]:
    return [struct.pack(">I4s", 8 + sum(map(len, parts)), kind), *parts]


def make_table(kind: bytes, first: bytes, entries: int, content: Part) -> list[Part]:
    """A box that says how many entries it has; `first`: its version, flags and what follows."""
    return make_box(kind, first + struct.pack(">I", entries), content)


def split_boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kinds and contents of boxes."""
    position = 0
    while position + 8 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        if not 8 <= size <= len(content) - position:
            raise ValueError(f"a box {kind!r} of {size} bytes in a place of {len(content)}")
        yield kind, content[position + 8 : position + size]
        position += size


def find_boxes(content: bytes, *path: bytes) -> Iterator[bytes]:
    """The contents of boxes that lie in boxes of these kinds."""
    for kind, inner in split_boxes(content):
        if kind == path[0]:
            yield from find_boxes(inner, *path[1:]) if path[1:] else [inner]


def find_box(content: bytes, *path: bytes) -> bytes:
    """The content of the only such box."""
    (found,) = find_boxes(content, *path)
    return found


def replace_boxes(
    kind: bytes, content: bytes, changed: Mapping[bytes, Sequence[Part]]
) -> list[Part]:
    """A box in which, wherever they are, those of some kinds are others, or none."""
    if kind in changed:
        return list(changed[kind])
    if kind not in PARTED:
        return make_box(kind, content)
    parts: list[Part] = []
    for inner, box in split_boxes(content):
        parts += replace_boxes(inner, box, changed)
    return make_box(kind, *parts)


def read_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int]]:
    """(kind, where it begins, where its content does, where it ends) of each box of a file."""
    end, begin = file.seek(0, os.SEEK_END), 0
    while begin < end:
        file.seek(begin)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            (size,), head = struct.unpack(">Q", file.read(8)), 16
        if not head <= size <= end - begin:
            raise ValueError(f"a box {kind!r} of {size} bytes, where {end - begin} are left")
        yield kind, begin, begin + head, begin + size
        begin += size
