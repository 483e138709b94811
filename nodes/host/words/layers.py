"""The host's layers for transformers' networks, and what their weights are held as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from torch import Tensor, nn

from ....skyreels_model.files.packed import (
    PackedWeight,
    import_bitsandbytes,
    pack_in_four_bits,
    pack_in_fp8,
    pack_scaled,
)
from ....skyreels_model.files.quantized import FP8_FORMATS, INT8, QuantizedWeight, ScaledWeight
from ..sockets import quantized
from ..sockets.gguf import GGUFLinear

UNPACKED = 12  # bytes a number takes while its weight is unpacked: itself, its scale, their product
AS_STORED, FP8, FOUR_BIT = FORMATS = ("as stored", "fp8", "4 bit")


class HostEmbedding(comfy.ops.manual_cast.Embedding):
    """An embedding in the format that the model computes in, whatever it is stored as."""

    compute_dtype = torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = super().forward(ids, out_dtype=self.compute_dtype)
        return out.to(self.compute_dtype)

    def project(self, x: Tensor) -> Tensor:
        """Scores of all words for x (…, D), by the same weight."""
        weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
        out = nn.functional.linear(x, weight)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out


class HostRMSNorm(nn.Module, comfy.ops.CastWeightBiasOp):
    """Qwen's norm, in float32 and then in the input's format, with a weight that the host moves."""

    comfy_cast_weights = True
    bias = None

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="meta"), requires_grad=False)
        self.epsilon = epsilon
        self.weight_function: list[Any] = []
        self.bias_function: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        floats = x.float()
        normed = floats * torch.rsqrt(floats.pow(2).mean(-1, keepdim=True) + self.epsilon)
        weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
        out = weight * normed.to(x.dtype)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out


class PackedLinear(GGUFLinear):
    """A linear layer whose weight is the bytes of a `PackedWeight`, or plain numbers."""

    def numbers(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        if weight.dtype != torch.uint8:
            return weight.to(dtype)
        return PackedWeight.from_bytes(weight, self.format).dequantize(dtype)


class Layers:
    """The layers of one network, chosen when its weights are known.

    packed: whether some weights lie in a form that only ours know. unpacked_bytes: what the largest
    of them takes beside it while it is used.
    """

    def __init__(self, weight_format: str) -> None:
        self.weight_format, self.packed, self.unpacked_bytes = weight_format, False, 0
        self._linear: type[nn.Module] = comfy.ops.manual_cast.Linear
        if weight_format == FOUR_BIT:
            import_bitsandbytes()  # before the file is read

    def make_readable(
        self, weights: Mapping[str, Tensor | QuantizedWeight]
    ) -> dict[str, Tensor | QuantizedWeight]:
        """The weights in the format that was chosen, those that no layer holds made plain."""
        if quantized.is_gguf(weights):
            raise ValueError("it is a GGUF file; take a safetensors file, or serve it")
        bar, made = comfy.utils.ProgressBar(len(weights)), {}
        for key, weight in weights.items():
            comfy.model_management.throw_exception_if_processing_interrupted()
            made[key] = self._pack(key, weight)
            bar.update(1)
        self.packed = any(isinstance(weight, PackedWeight) for weight in made.values())
        if self.packed:
            self._linear = PackedLinear
            sizes = [w.shape.numel() for w in made.values() if isinstance(w, PackedWeight)]
            self.unpacked_bytes = UNPACKED * max(sizes)
            made = {key: _as_packed(weight) for key, weight in made.items()}
        readable, _note = quantized.make_readable(made, _is_of_layer)
        if not self.packed and any(not isinstance(weight, Tensor) for weight in readable.values()):
            self._linear = quantized.scaled_linear(torch.bfloat16)
        return readable

    def _pack(self, key: str, weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
        if _needs_packing(weight):
            return pack_scaled(weight)
        plain = isinstance(weight, Tensor) and weight.ndim == 2 and weight.dtype.itemsize > 1
        if self.weight_format == AS_STORED or not plain or not _is_of_layer(key):
            return weight
        if self.weight_format == FP8:
            return pack_in_fp8(weight)
        return pack_in_four_bits(weight, comfy.model_management.get_torch_device())

    def replace(self, layer: nn.Module) -> nn.Module | None:
        """The host's layer for one of the network's, None for what has no weights of its own."""
        if isinstance(layer, nn.Linear):
            bias = layer.bias is not None
            return self._linear(layer.in_features, layer.out_features, bias, device="meta")
        if isinstance(layer, nn.Embedding):
            return HostEmbedding(layer.num_embeddings, layer.embedding_dim, device="meta")
        if isinstance(layer, nn.Conv3d):
            return comfy.ops.manual_cast.Conv3d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                layer.stride,
                bias=layer.bias is not None,
                device="meta",
            )
        if type(layer).__name__.endswith("RMSNorm"):
            return HostRMSNorm(layer.weight.shape[0], layer.variance_epsilon)
        return None


def _is_of_layer(key: str) -> bool:
    """Whether a weight is of the layers that read and write text, which are nearly all."""
    return ".layers." in key and key.endswith("_proj.weight")


def _needs_packing(weight: Tensor | QuantizedWeight) -> bool:
    """Whether the host has no layer that keeps it in few bits: int8, or a scale for each row."""
    if not isinstance(weight, ScaledWeight) or weight.data.ndim != 2:
        return False
    name, scale = weight.settings["format"], weight.scales.get("weight_scale")
    in_rows = name in FP8_FORMATS.values() and scale is not None and scale.numel() > 1
    return name == INT8 or in_rows


def _as_packed(weight: Tensor | QuantizedWeight) -> Tensor | QuantizedWeight:
    """fp8 as our own layers hold it."""
    fp8 = isinstance(weight, ScaledWeight) and weight.settings["format"] in FP8_FORMATS.values()
    return pack_scaled(weight) if fp8 and weight.data.ndim == 2 else weight
