"""GGUF files, by the optional package `gguf`: their weights stay in its blocks until asked for."""

from __future__ import annotations

import errno
import pathlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .gguf_blocks import FORMATS, dequantize, scales
from .gguf_vocabulary import MODEL, sentencepiece_model
from .limits import refuse_too_many
from .quantized import QuantizedWeight

ARCHITECTURE = "general.architecture"
# GGML tensors have four dimensions at most: converters store the shape of larger ones apart.
_SHAPE = "comfy.gguf.orig_shape."
_PLAIN = {"F64", "F32", "F16", "I8", "I16", "I32", "I64"}
FORMAT_KEY = "gguf_format"


@dataclass(frozen=True)
class GGUFWeight:
    """A weight as bytes of blocks (uint8), the blocks' format, and its shape as numbers."""

    data: Tensor
    format: str
    shape: torch.Size

    @property
    def kind(self) -> str:
        return f"GGUF {self.format}"

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.data, self.format, self.shape, dtype)

    def floats(self) -> list[Tensor]:
        return [scales(self.data, self.format)]

    def entries(self, key: str) -> dict[str, Tensor]:
        layer = key.removesuffix("weight")
        text = torch.tensor(list(self.format.encode()), dtype=torch.uint8)
        return {key: self.data, f"{layer}{FORMAT_KEY}": text}


def read_gguf(
    path: pathlib.Path,
) -> tuple[dict[str, Tensor | QuantizedWeight], dict[str, str]]:
    """A file's weights by name, and its texts (`general.architecture`, …); memory-mapped.

    Formats that are not in `gguf_blocks.FORMATS` are converted to bfloat16 here, which takes more
    memory. Raises ValueError when the file is cut or no GGUF, or when the package is not there.
    """
    try:
        import gguf
    except ImportError as error:
        raise ValueError(
            f"{path.name} is a GGUF file; to read it, install the package gguf with ComfyUI's own "
            f"Python (python -m pip install gguf) and restart, or use a safetensors file"
        ) from error
    _check_count(path)
    try:
        reader = _open_reader(gguf, path)
        weights = {tensor.name: _read_weight(gguf, reader, tensor) for tensor in reader.tensors}
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
        OSError,
    ) as error:
        raise ValueError(
            f"{path.name} ({path.stat().st_size} bytes) is not a whole GGUF file: {error}. It is "
            f"likely truncated or still being downloaded; fetch it again"
        ) from error
    texts = {
        name: field.contents()
        for name, field in reader.fields.items()
        if field.types == [gguf.GGUFValueType.STRING]
    }
    if texts.get(MODEL) == "t5":
        # Under the name that ComfyUI's files have it by.
        weights.setdefault("spiece_model", sentencepiece_model(reader.fields))
    return weights, texts


def _check_count(path: pathlib.Path) -> None:
    """Raise ValueError for more tensors than a model has, which would be read one by one."""
    with path.open("rb") as opened:
        begin = opened.read(16)
    if len(begin) == 16:  # else the reader says that it is cut
        refuse_too_many(path, int.from_bytes(begin[8:], "little"))


def _open_reader(gguf: Any, path: pathlib.Path) -> Any:
    try:
        # Copy on write: torch has no read-only tensors.
        return gguf.GGUFReader(path, "c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        # Larger than memory and swap: the system maps it only to be read.
        return gguf.GGUFReader(path, "r")


def _read_weight(gguf: Any, reader: Any, tensor: Any) -> Tensor | QuantizedWeight:
    """One of the reader's tensors; `gguf` is the package."""
    name, array = tensor.tensor_type.name, tensor.data
    if not array.flags.writeable and name in (*_PLAIN, "BF16"):
        array = array.copy()  # plain numbers, which patches may be written to; blocks never are
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")
        data = torch.from_numpy(array)
    shape = torch.Size(int(size) for size in reversed(tensor.shape.tolist()))
    stored = reader.get_field(f"{_SHAPE}{tensor.name}")
    if stored is not None:
        shape = torch.Size(stored.contents())
        if shape.numel() != tensor.n_elements:
            raise ValueError(f"{tensor.name} has {tensor.n_elements} numbers, no {tuple(shape)}")
    if name in _PLAIN:
        return data.reshape(shape)
    if name == "BF16":
        return data.view(torch.bfloat16).reshape(shape)
    if name in FORMATS:
        return GGUFWeight(data, name, shape)
    try:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ValueError(f"{tensor.name} has the format {name}, which cannot be read") from error
    return torch.from_numpy(numbers).to(torch.bfloat16).reshape(shape)


def require_architecture(metadata: Mapping[str, str], *names: str) -> None:
    """Raise ValueError if a file says that it is a GGUF of another kind of model than `names`.

    For files whose tensors are not the ones looked for: converters write many names for one kind.
    """
    found = metadata.get(ARCHITECTURE, names[0])
    if found not in names:
        raise ValueError(
            f"this is a GGUF file of the architecture {found!r}; needed is one that has "
            f"{names[0]!r}: get a GGUF of that model"
        )
