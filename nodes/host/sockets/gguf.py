"""GGUF weights in the host: held as bytes, made numbers layer by layer, patched on the fly."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor, nn

from ....skyreels_model.files.gguf import FORMAT_KEY
from ....skyreels_model.files.gguf_blocks import dequantize
from .keeps_quantized import KeepsQuantized
from .patcher import HooksOnTheFly


class _Bytes:
    """What the host casts of a layer: its bytes, without the patches, which are for numbers."""

    weight_function: tuple[()] = ()

    def __init__(self, layer: GGUFLinear) -> None:
        self._layer = layer

    weight = property(lambda self: self._layer.weight)
    bias = property(lambda self: self._layer.bias)
    bias_function = property(lambda self: self._layer.bias_function)


class GGUFLinear(nn.Module, comfy.ops.CastWeightBiasOp, KeepsQuantized):
    """A linear layer whose weight is uint8 blocks, or plain numbers where the file has such.

    The host moves it and streams it as any of its layers; the numbers live for one product.
    """

    comfy_cast_weights = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.format = ""
        self.register_parameter("weight", None)
        empty = torch.empty(out_features, device=device, dtype=dtype) if bias else None
        self.bias = None if empty is None else nn.Parameter(empty, requires_grad=False)
        self.weight_function: list[Any] = []
        self.bias_function: list[Any] = []

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        text = state_dict.pop(f"{prefix}{FORMAT_KEY}", torch.zeros(0))
        self.format = bytes(text.byte().tolist()).decode()
        given = state_dict[f"{prefix}weight"]
        self.weight = nn.Parameter(torch.empty_like(given, device="meta"), requires_grad=False)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        comfy.ops.run_every_op()
        # Made anew: kept, it and the layer would hold each other in memory.
        stored = _Bytes(self)
        weight, bias, stream = comfy.ops.cast_bias_weight(
            stored,
            dtype=self.weight.dtype,
            device=x.device,
            bias_dtype=x.dtype,
            offloadable=True,
        )
        numbers = self.numbers(weight, x.dtype)
        if self.weight_function and numbers is weight:
            numbers = numbers.clone()  # patches write into it
        for function in self.weight_function:
            numbers = function(numbers)
        out = nn.functional.linear(x, numbers, bias)
        comfy.ops.uncast_bias_weight(stored, weight, bias, stream)
        return out

    def numbers(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer's weight, given as stored, in `dtype`."""
        if weight.dtype != torch.uint8:
            return weight.to(dtype)
        shape = torch.Size((self.out_features, self.in_features))
        return dequantize(weight, self.format, shape, dtype)

    def convert_weight(self, weight: Tensor, **_kwargs: Any) -> Tensor:
        """The host's question for the numbers of a weight, which it may have cast before."""
        if (
            self.weight is None
            or self.weight.dtype != torch.uint8
            or weight.shape
            == (
                self.out_features,
                self.in_features,
            )
        ):
            return weight
        # A byte is exact in every dtype that the host computes in.
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        return self.numbers(weight.to(torch.uint8), dtype)

    def set_weight(
        self, weight: Tensor, return_weight: bool = False, **_kwargs: Any
    ) -> Tensor | None:
        """The host's wish to hold a patched weight: as numbers, which no format here encodes."""
        plain = weight.to(self.dtype)
        if return_weight:
            return plain
        self.weight = nn.Parameter(plain, requires_grad=False)
        return None


class GGUFPatcher(HooksOnTheFly):
    """The host's patcher, which leaves GGUF weights packed and patches their numbers on the fly."""

    def patch_weight_to_device(
        self, key: str, device_to: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        layer, patched = self._packed_layer(key), key in self.patches
        if layer is not None and kwargs.get("return_weight") and not patched:
            return layer.numbers(layer.weight, layer.dtype)
        if layer is None or kwargs.get("return_weight") or not patched:
            return super().patch_weight_to_device(key, device_to, *args, **kwargs)
        layer.weight_function.append(comfy.model_patcher.LowVramPatch(key, self.patches))
        _drop_older_patches(layer)
        return None

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            for layer in self._layers():
                layer.weight_function = []
        super().unpatch_model(device_to, unpatch_weights)

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        freed = super().partially_unload(*args, **kwargs)
        for layer in self._layers():
            # The host adds a patch to what it unloads, which here was patched already.
            _drop_older_patches(layer)
        return freed

    def model_state_dict_for_saving(self, model: Any = None, prefix: str = "") -> dict[str, Any]:
        """Numbers in the dtype that is computed in, made one weight at a time as they are saved."""
        state = super().model_state_dict_for_saving(model, prefix)
        for key in state:
            layer = self._packed_layer(prefix + key)
            if layer is not None:
                shape = (layer.out_features, layer.in_features)
                like = torch.empty(shape, dtype=layer.dtype, device="meta")
                state[key] = comfy.model_patcher.LazyCastingParam(self, prefix + key, like)
        return state

    def add_weight_wrapper(self, name: str, function: Any) -> None:
        """The host's for training, which wants a gradient through each layer's own numbers."""
        if isinstance(self._layer_of(name), GGUFLinear):
            raise ValueError(
                "model is a GGUF one, whose weights are packed; for training it must be a bf16, "
                "fp16, fp32 or fp8 file's"
            )
        super().add_weight_wrapper(name, function)

    def _layers(self) -> list[GGUFLinear]:
        return [m for m in self.model.modules() if isinstance(m, GGUFLinear)]

    def _packed_layer(self, key: str) -> GGUFLinear | None:
        """The layer whose packed weight has this key, if it is one."""
        name, _, leaf = key.rpartition(".")
        layer = comfy.utils.get_attr(self.model, name) if leaf == "weight" and name else None
        packed = isinstance(layer, GGUFLinear) and layer.weight.dtype == torch.uint8
        return layer if packed else None


def _drop_older_patches(layer: GGUFLinear) -> None:
    """Keep of the patches on a layer the last, which has all of a patcher's, before the rest."""
    functions, kind = layer.weight_function, comfy.model_patcher.LowVramPatch
    patches = [f for f in functions if isinstance(f, kind)]
    layer.weight_function = patches[-1:] + [f for f in functions if not isinstance(f, kind)]
