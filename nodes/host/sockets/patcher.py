"""The host's patcher class for our models, and hooks on layers that keep quantised weights."""

from __future__ import annotations

import functools
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from .keeps_quantized import KeepsQuantized


def patcher_type(disable_dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """The host's patcher class; looked up at each call, since the host swaps it at start-up."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


class HookPatch:
    """What a hook changes of one layer's weight, applied to its numbers at each use."""

    def __init__(self, patcher: HooksOnTheFly, key: str, patches: list[Any]) -> None:
        self.key, self.patches, self.originals = key, patches, _Originals(patcher)

    def __call__(self, weight: Tensor) -> Tensor:
        changed: Tensor = comfy.lora.calculate_weight(
            self.patches,
            weight,
            self.key,
            intermediate_dtype=weight.dtype,
            original_weights=self.originals,
        )
        return changed


class _Originals(dict[str, Any]):
    """Weights without patches, as numbers: what a whole model used as a LoRA is compared with."""

    def __init__(self, patcher: HooksOnTheFly) -> None:
        super().__init__()
        self._patcher = patcher

    def __missing__(self, key: str) -> Any:
        return [(original_weight(self._patcher, key), None)]


def original_weight(patcher: comfy.model_patcher.ModelPatcher, key: str) -> Tensor:
    """A weight in float32 and without patches, on the CPU, whatever it is stored as."""
    weight, convert = patcher.get_key_patches(key)[key][0]
    numbers: Tensor = convert(weight.to("cpu", torch.float32))
    return numbers


class HooksOnTheFly(comfy.model_patcher.ModelPatcher):
    """A patcher whose hooks never write into the weights of layers that keep them quantised.

    The host writes patched numbers in the place of a weight, and its copy of that back when the
    hooks go. Numbers neither fit into the place of packed ones, nor come back from it unchanged.
    """

    def clone(self, *args: Any, **kwargs: Any) -> comfy.model_patcher.ModelPatcher:
        # Of a patcher for dynamic VRAM the host makes a plain one where there are hooks.
        return hook_on_the_fly(super().clone(*args, **kwargs))

    def patch_hooks(self, hooks: Any) -> None:
        self._drop_hook_patches()
        super().patch_hooks(hooks)
        for key, patches in self.get_combined_hook_patches(hooks).items():
            layer = self._quantized_layer(key)
            if layer is not None:
                layer.weight_function.append(HookPatch(self, key, patches))

    def patch_hook_weight_to_device(
        self, hooks: Any, combined_patches: Any, key: str, *args: Any, **kwargs: Any
    ) -> None:
        if self._quantized_layer(key) is None:
            super().patch_hook_weight_to_device(hooks, combined_patches, key, *args, **kwargs)

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> None:
        if not whitelist_keys_set:
            self._drop_hook_patches()
        super().unpatch_hooks(whitelist_keys_set)

    def model_state_dict(self, filter_prefix: str | None = None) -> dict[str, Tensor]:
        """The host's, without scales and marks, which no layer holds under these names."""
        state = super().model_state_dict(filter_prefix)
        own = (".weight", ".bias")
        return {k: v for k, v in state.items() if k.endswith(own) or not self._layer_of(k)}

    def _drop_hook_patches(self) -> None:
        for layer in self.model.modules():
            if isinstance(layer, KeepsQuantized):
                functions = layer.weight_function
                layer.weight_function = [f for f in functions if not isinstance(f, HookPatch)]

    def _quantized_layer(self, key: str) -> Any:
        """The layer that takes a quantised weight under this key, None if there is none."""
        return self._layer_of(key) if key.endswith(".weight") else None

    def _layer_of(self, key: str) -> Any:
        """The layer that takes quantised weights and has this key, None if it is another's."""
        name = key.rpartition(".")[0]
        layer = comfy.utils.get_attr(self.model, name) if name else None
        return layer if isinstance(layer, KeepsQuantized) else None


def hook_on_the_fly(
    patcher: comfy.model_patcher.ModelPatcher,
) -> comfy.model_patcher.ModelPatcher:
    """The same patcher, of whatever class the host chose, with `HooksOnTheFly`."""
    if not isinstance(patcher, HooksOnTheFly):
        patcher.__class__ = _with_hooks(type(patcher))
    return patcher


@functools.cache
def _with_hooks(base: type[comfy.model_patcher.ModelPatcher]) -> type[HooksOnTheFly]:
    return type(f"HooksOnTheFly{base.__name__}", (HooksOnTheFly, base), {})
