"""Layers that keep their weights quantised, of the host's own kind: it moves and patches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ....skyreels_model.files.gguf import GGUFWeight
from ....skyreels_model.files.quantized import (
    FP8_FORMATS,
    INT8,
    QuantizedWeight,
    ScaledWeight,
    Weights,
)
from .gguf import GGUFLinear
from .keeps_quantized import KeepsQuantized

HOST_FORMATS = frozenset(getattr(comfy.ops, "QUANT_ALGOS", ()))


def scaled_linear(compute_dtype: torch.dtype, exact: bool = False) -> type[nn.Module]:
    """The host's linear layer for weights with scales; plain weights it holds in `compute_dtype`.

    On a device without such a format's arithmetic, or with `exact`, its weight is converted to
    the input's format for each product.
    """
    management, disabled = comfy.model_management, set()
    device = management.get_torch_device()
    for name, supported in (
        ("nvfp4", "supports_nvfp4_compute"),
        ("mxfp8", "supports_mxfp8_compute"),
        *((name, "supports_fp8_compute") for name in FP8_FORMATS.values()),
    ):
        if not getattr(management, supported, lambda _device: False)(device):
            disabled.add(name)
    base = comfy.ops.mixed_precision_ops({}, compute_dtype, exact, disabled).Linear

    class ScaledLinear(base, KeepsQuantized):
        def __init__(
            self,
            in_features: int,
            out_features: int,
            bias: bool = True,
            device: Any = None,
            dtype: torch.dtype | None = None,
        ) -> None:
            super().__init__(in_features, out_features, bias, device, dtype)
            # Built on the meta device, where the host would put the loaded weights, too.
            self.factory_kwargs["device"] = None

    return ScaledLinear


def operations(weights: Weights, compute_dtype: torch.dtype) -> Any:
    """A namespace of the host's layers in which a transformer's blocks keep quantised weights."""
    packed = is_gguf(weights)
    made = GGUFLinear if packed else scaled_linear(compute_dtype)
    return type("Operations", (comfy.ops.manual_cast,), {"BlockLinear": made})


def is_gguf(weights: Weights) -> bool:
    return any(isinstance(weight, GGUFWeight) for weight in weights.values())


def keeps_quantized(module: nn.Module) -> Callable[[str], bool]:
    """Whether the layer that a weight is for takes it as it is; a question for `load_weights`."""
    return lambda key: isinstance(module.get_submodule(key.rpartition(".")[0]), KeepsQuantized)


def _is_of_block(key: str) -> bool:
    return key.startswith("blocks.")


def make_readable(
    weights: Weights, is_held: Callable[[str], bool] = _is_of_block
) -> tuple[dict[str, Tensor | QuantizedWeight], str]:
    """The weights, with plain numbers for those that no layer of this host could hold.

    is_held: whether a weight's layer is one that takes the host's formats beyond fp8. With a note
    for the report: how many these are, and why; empty if none. Raises ValueError for a format that
    neither the host nor we can read.
    """
    kept: dict[str, Tensor | QuantizedWeight] = {}
    reasons: dict[str, int] = {}
    for key, weight in weights.items():
        kept[key] = weight
        if isinstance(weight, ScaledWeight) and (why := _explain_not_held(key, weight, is_held)):
            kept[key] = _numbers(weight)
            reasons[why] = reasons.get(why, 0) + 1
    note = "; ".join(f"{count} of them made plain numbers: {why}" for why, count in reasons.items())
    return kept, f" ({note})" if note else ""


def _explain_not_held(key: str, weight: ScaledWeight, is_held: Callable[[str], bool]) -> str:
    """Why no layer here can hold a weight as it is; empty if one can."""
    name = weight.settings["format"]
    if name == INT8:
        return "they are int8 with a scale for each row"
    if name not in FP8_FORMATS.values():
        if name not in HOST_FORMATS:
            raise ValueError(
                f"{key} is stored as {name!r}, which this ComfyUI does not know; update ComfyUI, "
                f"or use an fp8, bf16 or fp16 file"
            )
        return "" if is_held(key) else "only layers of blocks hold this format"
    management = comfy.model_management
    device = management.get_torch_device()
    if not management.supports_cast(device, weight.data.dtype):
        return f"{device} has no fp8"
    if name not in HOST_FORMATS:
        return "this ComfyUI does not know the format"
    return "" if weight.scales["weight_scale"].numel() == 1 else "they have a scale for each row"


def _numbers(weight: ScaledWeight) -> Tensor:
    if weight.settings["format"] in (*FP8_FORMATS.values(), INT8):
        return weight.dequantize(torch.bfloat16)
    layer = scaled_linear(torch.float32)(weight.shape[1], weight.shape[0], False, "meta")
    layer.load_state_dict(weight.entries("weight"), assign=True)
    numbers: Tensor = layer.weight.dequantize()
    return numbers
