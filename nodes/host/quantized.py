"""Layers that keep their weights quantised, of the host's own kind: it moves and patches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ...skyreels_model.gguf_file import GGUFWeight
from ...skyreels_model.quantized import FP8_FORMATS, QuantizedWeight, ScaledWeight, Weights
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


def readable(weights: Weights) -> dict[str, Tensor | QuantizedWeight]:
    """The weights, with plain numbers for those that no layer of this host could hold.

    Raises ValueError for a format that neither the host nor we can read.
    """
    return {key: _readable(key, weight) for key, weight in weights.items()}


def _readable(key: str, weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
    if not isinstance(weight, ScaledWeight):
        return weight
    name = weight.settings["format"]
    if name in FP8_FORMATS.values():
        # The host's layers have one scale for a whole weight, and not every device has fp8.
        scalar = weight.scales["weight_scale"].numel() == 1
        management = comfy.model_management
        fp8 = management.supports_cast(management.get_torch_device(), weight.data.dtype)
        held = scalar and fp8 and name in HOST_FORMATS
        return weight if held else weight.dequantize(torch.bfloat16)
    if name not in HOST_FORMATS:
        raise ValueError(
            f"{key} is stored as {name!r}, which this ComfyUI does not know; update ComfyUI, or "
            f"use an fp8, bf16 or fp16 file"
        )
    if key.startswith("blocks."):
        return weight
    layer = scaled_linear(torch.float32)(weight.shape[1], weight.shape[0], False, "meta")
    layer.load_state_dict(weight.entries("weight"), assign=True)
    return layer.weight.dequantize()
