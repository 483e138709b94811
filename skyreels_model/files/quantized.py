"""Weights in 8 or fewer bits with scales beside them, as files hold them.

Known are the older convention (a root tensor `scaled_fp8`, `X.scale_weight`, `X.scale_input`),
ComfyUI's per-layer one (`X.comfy_quant`, `X.weight_scale`, `X.input_scale`, or the same in the
file's metadata) and quanto's (`X.weight._data`, `X.weight._scale`). All become a `ScaledWeight`
under the name of the weight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

FP8_FORMATS = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
# Whole numbers with a scale for each row, or one for all: what quanto and others write.
INT8 = "int8"
_READ = (*FP8_FORMATS.values(), INT8)
# What tells other quantisers' files, of which the numbers cannot be read here.
_FOREIGN = (
    (re.compile(r"\.weight\._(shift|zeropoint)$"), "quanto, in 4 or fewer bits"),
    (re.compile(r"\.quant_state\.bitsandbytes|\.(absmax|quant_map|SCB)$"), "bitsandbytes"),
    (re.compile(r"\.(qweight|qzeros|wscales)$"), "GPTQ, AWQ or Nunchaku"),
)
# Formats with two numbers in a byte, along the columns.
_PACKED_IN_PAIRS = ("nvfp4", "convrot_w4a4")
_MARK, _SETTINGS, _METADATA = "scaled_fp8", "comfy_quant", "_quantization_metadata"
_OLD_NAMES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
_SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
# Ends of names without which a weight's numbers mean something else.
NEEDED_WITH_WEIGHTS = (*_OLD_NAMES, *_SCALES, "weight_scale_inv", _SETTINGS)


class QuantizedWeight(Protocol):
    """What a checkpoint may hold in a weight's place until a layer asks for its numbers."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def kind(self) -> str:
        """The format's name, for reports."""
        ...

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight in `dtype`; ValueError where only a host knows how."""
        ...

    def entries(self, key: str) -> dict[str, Tensor]:
        """What a host's layer that keeps it quantised loads for the weight named `key`."""
        ...

    def floats(self) -> list[Tensor]:
        """The floating-point numbers in it, without computing the weight's own."""
        ...


Weights = Mapping[str, "Tensor | QuantizedWeight"]


@dataclass(frozen=True)
class ScaledWeight:
    """Numbers in few bits, the scales that belong to them, and how to read them.

    `settings` is ComfyUI's description of a layer: its `format` and, where products of fp8 numbers
    are too coarse for it, `full_precision_matrix_mult`. `scales` are named as in its files.
    """

    data: Tensor
    settings: dict[str, Any]
    scales: dict[str, Tensor]

    @property
    def kind(self) -> str:
        return f"scaled {self.settings['format']}"

    @property
    def shape(self) -> torch.Size:
        rows, *columns = self.data.shape
        pairs = 2 if self.settings["format"] in _PACKED_IN_PAIRS else 1
        return torch.Size([rows, *(pairs * c for c in columns)])

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        if self.settings["format"] not in _READ:
            raise ValueError(
                f"weights in the format {self.settings['format']!r} are only read inside ComfyUI; "
                f"use an fp8, bf16, fp16 or fp32 file"
            )
        scale = _shape_scale("a layer", self.scales["weight_scale"], self.data)
        return (self.data.float() * scale).to(dtype)

    def floats(self) -> list[Tensor]:
        return [self.data, *self.scales.values()]

    def entries(self, key: str) -> dict[str, Tensor]:
        layer = key.removesuffix("weight")
        described = json.dumps(self.settings).encode()
        return {
            key: self.data,
            f"{layer}{_SETTINGS}": torch.tensor(list(described), dtype=torch.uint8),
            **{f"{layer}{name}": scale for name, scale in self.scales.items()},
        }


def gather_scales(
    tensors: Weights, metadata: Mapping[str, str], prefix: str = ""
) -> dict[str, Tensor | QuantizedWeight]:
    """A file's tensors with each scaled weight and its scales in one object.

    `prefix` is one that the metadata's layers have and the tensors do not. Tensors without scales
    stay as they are. Raises ValueError where scales have no weight, or where a layer's description
    cannot be read.
    """
    tensors = _rename_quanto(tensors)
    described = _read_metadata(metadata).items()
    layers = {k.removeprefix(prefix): v for k, v in described if k.startswith(prefix)}
    marker = tensors.get(_MARK)
    kept: dict[str, Tensor | QuantizedWeight] = {}
    scales: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        layer, _, leaf = key.rpartition(".")
        leaf = _OLD_NAMES.get(leaf, leaf)
        if not isinstance(value, Tensor):
            kept[key] = value
        elif leaf == _SETTINGS:
            layers[layer] = _read_settings(layer, value)
        elif leaf in _SCALES and layer:
            scales.setdefault(layer, {})[leaf] = value
        elif key != _MARK:
            kept[key] = value
    for layer in {**layers, **scales}:
        weight = kept.get(f"{layer}.weight")
        if not isinstance(weight, Tensor):
            raise ValueError(f"the file has scales for {layer}, but not {layer}.weight")
        # The older convention's mark has two elements where fp8 products are too coarse.
        coarse = isinstance(marker, Tensor) and marker.numel() == 2
        found = scales.get(layer, {})
        kept[f"{layer}.weight"] = _attach_scales(layer, weight, layers.get(layer), found, coarse)
    return kept


def _rename_quanto(tensors: Weights) -> Weights:
    """The tensors with ComfyUI's names for what quanto calls otherwise.

    Its scales of a layer's input and output are for calibrated products, which are not made here.
    Raises ValueError for quantisers' formats that cannot be read.
    """
    for key in tensors:
        kind = next((kind for mark, kind in _FOREIGN if mark.search(key)), None)
        if kind is not None:
            raise ValueError(
                f"the file is quantised by {kind} (it has {key!r}), which is not read; use an fp8, "
                f"bf16, fp16 or fp32 file, ComfyUI's own quantised one, or a GGUF"
            )
    ends = {".weight._data": ".weight", ".weight._scale": ".weight_scale"}
    layers = {k.removesuffix(".weight._data") for k in tensors if k.endswith(".weight._data")}
    if not layers:
        return tensors
    beside = {f"{layer}.{name}" for layer in layers for name in ("input_scale", "output_scale")}
    named: dict[str, Tensor | QuantizedWeight] = {}
    for key, value in tensors.items():
        end = next((end for end in ends if key.endswith(end)), "")
        if key not in beside:
            named[f"{key.removesuffix(end)}{ends.get(end, '')}"] = value
    return named


def _attach_scales(
    layer: str,
    weight: Tensor,
    settings: dict[str, Any] | None,
    scales: dict[str, Tensor],
    coarse: bool,
) -> Tensor | ScaledWeight:
    """The weight with its scales; plain if it only looks scaled."""
    if settings is None:
        if weight.dtype == torch.int8 and "weight_scale" in scales:
            _shape_scale(layer, scales["weight_scale"], weight)
            return ScaledWeight(weight, {"format": INT8}, scales)
        if not weight.is_floating_point():
            raise ValueError(
                f"{layer}.weight is {str(weight.dtype)[6:]} with scales beside it, which is not "
                f"read; use an fp8, bf16, fp16 or fp32 file, ComfyUI's own quantised one, or a GGUF"
            )
        if weight.dtype not in FP8_FORMATS:
            # Some converters write scales beside the layers, too, that they left alone.
            scale = _shape_scale(layer, scales.get("weight_scale", torch.ones(())), weight)
            return weight if (scale == 1).all() else (weight.float() * scale).to(weight.dtype)
        settings = {"format": FP8_FORMATS[weight.dtype]}
        if coarse:
            settings["full_precision_matrix_mult"] = True
    if settings["format"] in FP8_FORMATS.values():
        if FP8_FORMATS.get(weight.dtype) != settings["format"]:
            raise ValueError(
                f"{layer}.weight is {str(weight.dtype)[6:]}, but described as "
                f"{settings['format']}; the file was converted wrongly: get another one"
            )
        scales = {"weight_scale": torch.ones(()), **scales}
        _shape_scale(layer, scales["weight_scale"], weight)
    return ScaledWeight(weight, settings, scales)


def _shape_scale(layer: str, scale: Tensor, weight: Tensor) -> Tensor:
    """One scale, or one for each row of a weight, in the shape that multiplies it.

    Raises ValueError for any other shape, and for scales that no quantiser writes: they would turn
    a weight round, or make it nothing.
    """
    rows = weight.shape[0] if weight.ndim else 1
    if scale.numel() == 1:
        _require_positive(layer, scale.float().reshape(1), weight.reshape(1, -1))
        return scale.float().reshape(())
    if scale.numel() != rows or scale.shape[0] != rows:
        raise ValueError(
            f"{layer} has scales of shape {tuple(scale.shape)} for a weight of "
            f"{tuple(weight.shape)}; read are one scale, or one for each of its {rows} rows"
        )
    _require_positive(layer, scale.float().reshape(-1), weight)
    return scale.float().reshape(-1, *[1] * (weight.ndim - 1))


def _require_positive(layer: str, scale: Tensor, weight: Tensor) -> None:
    """Raise ValueError for scales (R,) of rows that are negative, or 0 where the row is not."""
    if scale.is_meta:
        return
    lost = scale == 0
    if bool((scale < 0).any()) or (bool(lost.any()) and bool(weight[lost].float().any())):
        raise ValueError(
            f"{layer} has a scale of {float(scale.min()):g}; it must be above 0 (the file was "
            f"converted wrongly: get another one)"
        )


def _read_metadata(metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    text = metadata.get(_METADATA)
    if text is None:
        return {}
    try:
        layers = json.loads(text)["layers"]
        return {str(name): _check_settings(name, settings) for name, settings in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the file's {_METADATA} cannot be read: {error}") from error


def _read_settings(layer: str, value: Tensor) -> dict[str, Any]:
    try:
        return _check_settings(layer, json.loads(bytes(value.tolist())))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{layer}.{_SETTINGS} cannot be read: {error}") from error


def _check_settings(layer: str, settings: Any) -> dict[str, Any]:
    if not isinstance(settings, dict) or not isinstance(settings.get("format"), str):
        raise ValueError(f"{layer} has no format, but {settings!r}")
    return settings
