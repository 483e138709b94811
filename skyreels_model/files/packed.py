"""Weights in few bits of which each block has a scale: bitsandbytes' 4 bits, blocks of fp8 or int8.

Known are what bitsandbytes writes (`X.weight.absmax`, `X.weight.quant_state.bitsandbytes__nf4`, …;
in 8 bits `X.SCB`) and the blocks of fp8 that DeepSeek and Qwen publish (`X.weight_scale_inv`).
4 bits are made and read by the optional package bitsandbytes, on any device that it knows.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .gguf import FORMAT_KEY
from .quantized import INT8, QuantizedWeight, ScaledWeight

INSTALL = "python -m pip install bitsandbytes"
BLOCKS = "blocks"
FOUR_BIT = ("nf4", "fp4")
FP8_BLOCK = (128, 128)  # rows and columns with one scale, in all published files
_BLOCK_SIZE = 64  # numbers in 4 bits with one scale, as bitsandbytes packs by default
_ALIGNMENT = 16  # bytes, of a number in any format
_STATE = re.compile(r"^(?P<weight>.+\.weight)\.quant_state\.bitsandbytes__(?P<kind>\w+)$")
_BESIDE = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_LARGEST_INT8 = 127


@dataclass(frozen=True)
class PackedWeight:
    """A weight as `data` and what belongs to it, by name, and how they are read.

    settings: `quant_type`, one of `FOUR_BIT` with what bitsandbytes notes beside it, or `BLOCKS`
    with the `block` (rows, columns) of which `scale` has one number each; and the `shape`.
    """

    parts: dict[str, Tensor]
    settings: dict[str, Any]

    @property
    def kind(self) -> str:
        name = self.settings["quant_type"]
        return f"{str(self.parts['data'].dtype)[6:]} in blocks" if name == BLOCKS else name

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self.settings["shape"])

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`, where its parts are. ValueError where bitsandbytes is missing."""
        if self.settings["quant_type"] == BLOCKS:
            return _read_blocks(self.parts, self.settings["block"]).to(dtype)
        functional = import_bitsandbytes()
        noted = {**self.settings, **{k: v for k, v in self.parts.items() if k != "data"}}
        data = self.parts["data"]
        state = functional.QuantState.from_dict(noted, data.device)
        state.dtype = dtype
        numbers: Tensor = functional.dequantize_4bit(data.reshape(-1, 1), state)
        return numbers

    def floats(self) -> list[Tensor]:
        return [part for part in self.parts.values() if part.is_floating_point()]

    def entries(self, key: str) -> dict[str, Tensor]:
        """One row of bytes, so that a host moves it as one weight, and how to read it."""
        data, text = self.to_bytes()
        described = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return {key: data, f"{key.removesuffix('weight')}{FORMAT_KEY}": described}

    def to_bytes(self) -> tuple[Tensor, str]:
        """All parts as bytes, and the text with which `from_bytes` finds them again."""
        pieces, places, start = [], [], 0
        for name, part in self.parts.items():
            piece = part.contiguous().reshape(-1).view(torch.uint8)
            pieces += [piece, piece.new_zeros(-len(piece) % _ALIGNMENT)]
            places.append([name, str(part.dtype)[6:], list(part.shape), start])
            start += len(pieces[-2]) + len(pieces[-1])
        return torch.cat(pieces), json.dumps({"settings": self.settings, "parts": places})

    @staticmethod
    def from_bytes(data: Tensor, text: str) -> PackedWeight:
        """The weight of which `to_bytes` gave these; its parts are views of the bytes."""
        described = json.loads(text)
        parts = {}
        for name, kind, shape, start in described["parts"]:
            dtype = getattr(torch, kind)
            end = start + math.prod(shape) * dtype.itemsize
            parts[name] = data[start:end].view(dtype).reshape(shape)
        return PackedWeight(parts, described["settings"])


def _read_blocks(parts: Mapping[str, Tensor], block: tuple[int, int]) -> Tensor:
    """Numbers times the scales (rows / block, columns / block) of their blocks, in float32."""
    data, scale = parts["data"], parts["scale"].float()
    rows, columns = data.shape
    whole = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)
    return data.float() * whole[:, :columns]


def import_bitsandbytes() -> Any:
    """The package's functions; ValueError that says how to get them where it cannot be used."""
    try:
        import bitsandbytes.functional as functional
    except ImportError:
        raise ValueError(
            f"weights in 4 bits need the package bitsandbytes, which is missing; install it with "
            f"ComfyUI's own Python ({INSTALL}) and restart, or take fp8"
        ) from None
    except Exception as error:  # it looks for a driver's libraries, and may not like what it finds
        raise ValueError(f"bitsandbytes is installed, but does not start: {error}") from error
    return functional


def pack_in_four_bits(weight: Tensor, device: torch.device | None = None) -> PackedWeight:
    """A weight (R, C) as NF4, computed on `device`; ValueError where bitsandbytes is missing."""
    functional = import_bitsandbytes()
    numbers = weight.to(device or weight.device)
    if numbers.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        numbers = numbers.to(torch.bfloat16)
    data, state = functional.quantize_4bit(numbers, blocksize=_BLOCK_SIZE, quant_type="nf4")
    noted = state.as_dict()
    parts = {k: v.to(weight.device) for k, v in noted.items() if isinstance(v, Tensor)}
    settings = {k: v for k, v in noted.items() if not isinstance(v, Tensor)}
    settings["shape"] = list(settings["shape"])
    return PackedWeight({"data": data.to(weight.device).reshape(-1), **parts}, settings)


def pack_in_fp8(weight: Tensor) -> ScaledWeight:
    """A weight (R, C) as fp8 with one scale, read back to the input's format for each product."""
    largest = weight.abs().max().float()
    scale = torch.where(largest > 0, largest / torch.finfo(torch.float8_e4m3fn).max, 1.0)
    data = (weight.float() / scale).to(torch.float8_e4m3fn)
    settings = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
    return ScaledWeight(data, settings, {"weight_scale": scale})


def pack_scaled(weight: ScaledWeight) -> PackedWeight:
    """fp8 or int8 with one scale, or one for each row, as blocks."""
    rows, columns = weight.shape
    scale = weight.scales["weight_scale"].float().reshape(-1, 1)
    settings = {
        "quant_type": BLOCKS,
        "block": [rows if len(scale) == 1 else 1, columns],
        "shape": [rows, columns],
    }
    return PackedWeight({"data": weight.data, "scale": scale}, settings)


def gather_packed(
    tensors: Mapping[str, Tensor | QuantizedWeight],
) -> dict[str, Tensor | QuantizedWeight]:
    """A file's tensors with each weight of bitsandbytes, and each in blocks of fp8, in one object.

    All others stay as they are. Raises ValueError where parts are missing or do not fit.
    """
    kept = dict(tensors)
    for key in tensors:
        found = _STATE.match(key)
        layer, _, leaf = key.rpartition(".")
        if found:
            kept[found["weight"]] = _take_four_bits(kept, found["weight"], key)
        elif leaf == "weight_scale_inv":
            kept[f"{layer}.weight"] = _take_blocks(kept, layer)
        elif leaf == "SCB":
            kept[f"{layer}.weight"] = _take_int8(kept, layer)
    return kept


def _take(kept: dict[str, Any], key: str, dtype: torch.dtype | None = None) -> Tensor:
    value = kept.pop(key, None)
    if not isinstance(value, Tensor) or (dtype is not None and value.dtype != dtype):
        given = "nothing" if value is None else str(getattr(value, "dtype", type(value)))
        raise ValueError(
            f"{key} is {given}; beside its scales it must be {dtype or 'there'} (the file was cut "
            f"or converted wrongly: get another one)"
        )
    return value


def _take_four_bits(kept: dict[str, Any], weight: str, state: str) -> PackedWeight:
    try:
        settings = json.loads(bytes(_take(kept, state).tolist()))
        count, kind = math.prod(settings["shape"]), settings["quant_type"]
        known = kind in FOUR_BIT and len(settings["shape"]) == 2 and settings["blocksize"] > 0
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state} cannot be read: {error}") from error
    data = _take(kept, weight, torch.uint8).reshape(-1)
    beside = [name for name in _BESIDE if f"{weight}.{name}" in kept]
    parts = {name: _take(kept, f"{weight}.{name}") for name in beside}
    scales = parts.get("absmax", data[:0]).numel()
    if not known or len(data) != -(-count // 2) or scales != -(-count // settings["blocksize"]):
        raise ValueError(
            f"{weight} has {len(data)} bytes and {scales} scales, which does not fit "
            f"{settings}; the file was converted wrongly: get another one"
        )
    return PackedWeight({"data": data, **parts}, settings)


def _take_blocks(kept: dict[str, Any], layer: str) -> PackedWeight:
    scale = _take(kept, f"{layer}.weight_scale_inv")
    data = _take(kept, f"{layer}.weight", torch.float8_e4m3fn)
    fitting = tuple(-(-side // size) for side, size in zip(data.shape, FP8_BLOCK, strict=False))
    if tuple(scale.shape) != fitting:
        raise ValueError(
            f"{layer} has scales of shape {tuple(scale.shape)} for a weight of "
            f"{tuple(data.shape)}; they must be {fitting}, one for each block of 128 x 128"
        )
    settings = {"quant_type": BLOCKS, "block": list(FP8_BLOCK), "shape": list(data.shape)}
    return PackedWeight({"data": data, "scale": scale}, settings)


def _take_int8(kept: dict[str, Any], layer: str) -> ScaledWeight:
    kept.pop(f"{layer}.weight_format", None)
    largest = _take(kept, f"{layer}.SCB").float()
    data = _take(kept, f"{layer}.weight", torch.int8)
    if largest.shape != data.shape[:1]:
        raise ValueError(
            f"{layer}.SCB has shape {tuple(largest.shape)}; it must be ({data.shape[0]},), a scale "
            f"for each row"
        )
    return ScaledWeight(data, {"format": INT8}, {"weight_scale": largest / _LARGEST_INT8})
