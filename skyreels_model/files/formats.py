"""Single files to named tensors: what a file is, its first bytes tell, never its name.

Files are untrusted: nothing in them is ever executed.
"""

from __future__ import annotations

import errno
import json
import os
import pathlib
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from . import mapped
from .archive import check_archive
from .limits import refuse_too_many

# By which names hosts list them.
SAFETENSORS = (".safetensors", ".sft")
PICKLED = (".pth", ".pt", ".bin", ".ckpt")
GGUF = ".gguf"

Kind = Literal["safetensors", "PyTorch", "bare pickle", "GGUF"]
# Of a safetensors file: the length of its header, which is JSON, in eight bytes, and its limit.
_HEADER_AT, _LONGEST_HEADER = 8, 100_000_000
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
# What judges the model in training, in files of Self-Forcing and its kin.
CRITIC = "critic"
# What the system says when it would have to set aside more memory than it has.
_NO_MEMORY = os.strerror(errno.ENOMEM)
_OTHER = (
    (b"version https://git-lfs", "a pointer of Git LFS, which stands in its place (git lfs pull)"),
    (b"<", "a web page, which was downloaded in its place"),
    (b"{", "JSON text"),
)


@dataclass(frozen=True)
class FileTensors:
    """What one file holds: named tensors, metadata, and whether they lie in a mapping of the file.

    note: which set of tensors was taken, where the file has several. offsets: where in the file
    each tensor's bytes begin, of kinds that have them side by side.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    mapped: bool
    note: str = ""
    offsets: dict[str, int] = field(default_factory=dict)


def kind_of(file: pathlib.Path) -> Kind:
    """What a file is by its content; ValueError, saying what it looks like, for none known here."""
    with file.open("rb") as opened:
        begin = opened.read(64)
    # First, since a header's length may look like another kind's mark, while theirs are no lengths.
    length = int.from_bytes(begin[:_HEADER_AT], "little")
    if begin[_HEADER_AT : _HEADER_AT + 1] == b"{" and length <= _LONGEST_HEADER:
        return "safetensors"
    if begin.startswith(b"GGUF"):
        return "GGUF"
    if begin.startswith(b"PK\x03\x04"):
        return "PyTorch"
    if begin.startswith(pickle.PROTO):
        return "bare pickle"
    if not begin.strip(b"\0"):
        raise ValueError(
            f"{file.name} ({file.stat().st_size} bytes) is empty: truncated or still being "
            f"downloaded; fetch it again"
        )
    text = begin.lstrip().lower()
    found = next((what for start, what in _OTHER if text.startswith(start)), None)
    raise ValueError(
        f"{file.name} ({file.stat().st_size} bytes) is no file of tensors (safetensors, PyTorch or "
        f"GGUF), but {found or f'something that begins with {begin[:16]!r}'}; fetch the right one"
    )


def read_tensors(file: pathlib.Path) -> FileTensors:
    """A file's tensors and metadata.

    Raises ValueError, naming the file, when it is truncated or holds anything else; of GGUF files,
    whose weights are no plain tensors.
    """
    kind = kind_of(file)
    if kind == "GGUF":
        raise ValueError(f"{file.name} is a GGUF file among files of another kind")
    if kind == "safetensors":
        tensors, metadata = _read_safetensors(file)
        header, begin = _read_header(file)
        offsets = {
            name: begin + entry["data_offsets"][0]
            for name, entry in header.items()
            if name in tensors
        }
        return FileTensors(tensors, metadata, True, offsets=offsets)
    # Files of PyTorch before 1.6 are bare pickles, which cannot be memory-mapped; nor can what it
    # takes by its name for a file of another kind.
    mappable = kind == "PyTorch" and file.suffix != ".safetensors"
    if kind == "PyTorch":
        check_archive(file)
    tensors, note = _read_pickled(file, mappable)
    return FileTensors(tensors, {}, mappable, note)


def _read_safetensors(file: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            refuse_too_many(file, len(names))
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{file.name} ({file.stat().st_size} bytes) is not a whole safetensors file: {error}. "
            f"It is likely truncated or still being downloaded; fetch it again"
        ) from error
    except RuntimeError as error:
        if _NO_MEMORY not in str(error):
            raise
        return _read_larger_than_memory(file)


def _read_header(file: pathlib.Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file says of each tensor and where the first begins; whole, as checked."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_HEADER_AT), "little")
        header = json.loads(opened.read(length))
    return header, _HEADER_AT + length


def _read_larger_than_memory(file: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file, whole as its library found it, in a mapping of ours."""
    try:
        whole = mapped.map_without_reserve(file)
    except OSError as error:
        raise mapping_refusal(file) from error
    header, begin = _read_header(file)
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{file.name}: {name} is stored as {entry['dtype']}, which is not read"
            )
        dtype, (first, behind) = _DTYPES[entry["dtype"]], entry["data_offsets"]
        count = (behind - first) // dtype.itemsize
        numbers = torch.empty(0, dtype=dtype)
        if count:
            numbers = torch.frombuffer(whole, dtype=dtype, count=count, offset=begin + first)
        tensors[name] = numbers.reshape(entry["shape"])
    return tensors, metadata


def mapping_refusal(file: pathlib.Path) -> ValueError:
    """The error for a file that the system does not map."""
    return ValueError(
        f"{file.name} ({file.stat().st_size / 1e9:.1f} GB) is larger than what this system lets a "
        f"program map of a file: give it more swap (or a larger page file), or take a smaller one, "
        f"such as fp8"
    )


def _read_pickled(file: pathlib.Path, mappable: bool) -> tuple[dict[str, Tensor], str]:
    try:
        with file.open("rb") as opened:
            given = file if mappable else opened
            loaded = torch.load(given, map_location="cpu", weights_only=True, mmap=mappable)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file.name} holds more than tensors (it would run code when loaded), or is damaged, "
            f"and is refused; get the safetensors version of it"
        ) from error
    except (RuntimeError, EOFError, OSError, LookupError) as error:
        if _NO_MEMORY in str(error):
            raise mapping_refusal(file) from error
        raise ValueError(
            f"{file.name} ({file.stat().st_size} bytes) is not a whole PyTorch file: {error}"
        ) from error
    sets = dict(_find_sets(loaded))
    if not sets:
        raise ValueError(f"{file.name} is not a file of named tensors with numbers in them")
    taken = _choose(file, list(sets))
    refuse_too_many(file, len(sets[taken]))
    others = ", ".join(sorted(sets))
    return dict(sets[taken]), f"of its sets ({others}) {taken} was taken" if len(sets) > 1 else ""


def _find_sets(
    loaded: Any, name: str = "", depth: int = 3
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each set of named tensors in what a trainer saved, with the names that lead to it."""
    if _is_set(loaded):
        yield name, loaded
    elif isinstance(loaded, dict) and depth:
        for key, value in loaded.items():
            if isinstance(key, str):
                yield from _find_sets(value, f"{name}.{key}".strip("."), depth - 1)


def _choose(file: pathlib.Path, names: list[str]) -> str:
    """The set to take of those in a file: the only one, `state_dict`, or the averaged (EMA) one.

    Never the critic of a distillation, which has the names of the model that is distilled.
    """
    models = [name for name in names if not _says(name, CRITIC)]
    if len(models or names) == 1:
        return (models or names)[0]
    averaged = [name for name in models if _says(name, "ema")]
    for found in (["state_dict"] if "state_dict" in names else [], averaged):
        if len(found) == 1:
            return found[0]
    raise ValueError(
        f"{file.name} holds {len(names)} sets of tensors ({', '.join(sorted(names))}), and which "
        f"is meant is not clear: save the one that you need in a file of its own"
    )


def _says(name: str, word: str) -> bool:
    """Whether a word is a part of a set's name."""
    return word in re.split("[._]", name)


def _is_set(loaded: Any) -> bool:
    """Whether these are tensors by name, each with its numbers (PyTorch's meta device has none)."""
    return (
        isinstance(loaded, dict)
        and bool(loaded)
        and all(
            isinstance(key, str)
            and isinstance(value, Tensor)
            and value.layout == torch.strided
            and not value.is_meta
            for key, value in loaded.items()
        )
    )
