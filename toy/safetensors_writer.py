"""Writing safetensors files as a stream: bounded memory, the same bytes every time.

The safetensors library holds all tensors in memory and orders metadata at random; files of full
size are larger than memory, and files under version control should not change when rewritten.
Format: https://github.com/huggingface/safetensors ("Format").
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
}
HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: `pieces()` yields its values in order, in any shapes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: Callable[[], Iterable[Tensor]]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: [tensor])


@contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary name that becomes `path` on success and is removed on failure."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_safetensors(
    path: str | pathlib.Path,
    entries: Iterable[Entry],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the entries in the order given; never more than one piece is in memory.

    `metadata` defaults to {"format": "pt"}, as torch files carry it.
    Raises ValueError for a dtype the format has no name for here, for a name given twice, and
    for pieces that do not add up to their shape or differ in dtype; nothing is left under `path`.
    """
    entries = list(entries)
    header = _header(entries, {"format": "pt"} if metadata is None else metadata)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for entry in entries:
            start = file.tell()
            for piece in entry.pieces():
                if piece.dtype != entry.dtype:
                    raise ValueError(
                        f"{entry.name}: a piece of {piece.dtype} was given; declared is "
                        f"{entry.dtype}"
                    )
                file.write(piece.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            written = file.tell() - start
            if written != entry.size:
                raise ValueError(
                    f"{entry.name}: pieces of {written} bytes were given; shape {entry.shape} "
                    f"in {entry.dtype} takes {entry.size}"
                )


def _header(entries: list[Entry], metadata: Mapping[str, str]) -> bytes:
    """JSON of names, dtypes, shapes and byte ranges, padded with spaces."""
    table: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for entry in entries:
        if entry.name in table:
            raise ValueError(f"{entry.name}: given twice; names must differ")
        if entry.dtype not in DTYPE_NAMES:
            legal = ", ".join(str(dtype) for dtype in DTYPE_NAMES)
            raise ValueError(f"{entry.name}: dtype is {entry.dtype}; legal are {legal}")
        table[entry.name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.size],
        }
        offset += entry.size
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % HEADER_ALIGNMENT)
