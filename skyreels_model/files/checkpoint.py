"""Files to tensors, tensors to modules."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import mapped
from .formats import kind_of, read_tensors
from .gguf import read_gguf
from .keys import unwrap_keys
from .quantized import NEEDED_WITH_WEIGHTS

SHARD = re.compile(
    r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.sft|\.bin)$"
)


class Place(NamedTuple):
    """Where a tensor's bytes lie, as they are in memory, in a file."""

    file: pathlib.Path
    offset: int


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file or of a set of shards, by name, with the file's own metadata.

    Of a GGUF file some are quantised (`QuantizedWeight`). mapped: addresses of storages that are
    parts of a memory-mapped file. note: for reports, what was taken where a file has several sets.
    places: of such storages that hold one tensor each, by address.
    """

    tensors: dict[str, Any]
    metadata: dict[str, str]
    mapped: frozenset[int] = frozenset()
    note: str = ""
    places: Mapping[int, Place] = field(default_factory=dict)

    def add_note(self, report: str) -> str:
        """A report on this file, with the note at its end."""
        return f"{report}; {self.note}" if self.note else report

    def release(self, tensor: Tensor) -> None:
        """Keep a tensor of this file no longer in memory, where the file itself can give it again.

        For tensors that nothing has written to.
        """
        if tensor.untyped_storage().data_ptr() in self.mapped and tensor.is_contiguous():
            mapped.release(tensor)


def read(path: str | pathlib.Path) -> Checkpoint:
    """Read a checkpoint: one file, or, given one shard of a set, all of the set.

    Memory-mapped wherever the file allows it. What kind of file it is, its content tells. Raises
    ValueError, naming the file, when it is truncated, incomplete or of another kind;
    FileNotFoundError when there is none.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if kind_of(path) == "GGUF":
        packed, texts = read_gguf(path)
        return Checkpoint(unwrap_keys(packed), texts)
    return _read_shards(shard_files(path))


def shard_files(path: pathlib.Path) -> list[pathlib.Path]:
    """All files of the set that `path` belongs to; ValueError if one of them is missing."""
    match = SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    files = [
        path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}{match['suffix']}")
        for i in range(1, count + 1)
    ]
    if path not in files:
        return [path]
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        raise ValueError(
            f"{path.name} is one of {count} shards, of which {len(absent)} are missing beside it: "
            f"{', '.join(absent[:3])}{', …' if absent[3:] else ''}"
        )
    return files


def _read_shards(files: list[pathlib.Path]) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    note = ""
    addresses: set[int] = set()
    places: dict[int, Place] = {}
    dtypes: dict[str, tuple[torch.dtype | None, str]] = {}
    for file in files:
        read = read_tensors(file)
        part = unwrap_keys(read.tensors)
        twice = tensors.keys() & part.keys()
        if twice:
            raise ValueError(f"{file.name}: {min(twice)!r} is in another shard, too")
        if len(files) > 1:
            _refuse_another_precision(file.name, part, dtypes)
        tensors.update(part)
        metadata.update(read.metadata)
        note = read.note or note
        if read.mapped:
            addresses.update(t.untyped_storage().data_ptr() for t in part.values())
        for name, offset in read.offsets.items():
            places[read.tensors[name].untyped_storage().data_ptr()] = Place(file, offset)
    return Checkpoint(tensors, metadata, frozenset(addresses), note, places)


def _refuse_another_precision(
    name: str, part: Mapping[str, Tensor], seen: dict[str, tuple[torch.dtype | None, str]]
) -> None:
    """Raise ValueError if a shard stores a weight otherwise than another shard in another block.

    `seen` has the dtype of each weight, its block's number left out, and the shard it was in;
    None where one shard has several, as files have that keep some blocks finer on purpose. Weights
    with scales beside them are left out for the same reason.
    """
    found: dict[str, set[torch.dtype]] = {}
    places = [key.rpartition(".") for key in part]
    scaled = {layer for layer, _, leaf in places if leaf in NEEDED_WITH_WEIGHTS}
    for key, tensor in part.items():
        plain = key.rpartition(".")[0] not in scaled
        if plain and tensor.ndim >= 2 and tensor.is_floating_point():
            found.setdefault(re.sub(r"\d+", "#", key, count=1), set()).add(tensor.dtype)
    for role, dtypes in found.items():
        dtype = next(iter(dtypes)) if len(dtypes) == 1 else None
        before, other = seen.setdefault(role, (dtype, name))
        if dtype is None:
            seen[role] = (None, name)
        elif before not in (None, dtype):
            raise ValueError(
                f"{name} stores {role} as {str(dtype)[6:]}, {other} as {str(before)[6:]}: these "
                f"are shards of two downloads in different precision; delete one of the two and "
                f"fetch what is then missing"
            )


def published_name(path: str | pathlib.Path) -> str:
    """The part of a path that tells the variant: the file's own name and its folder's."""
    path = pathlib.Path(path)
    return f"{path.parent.name}/{path.name}"
