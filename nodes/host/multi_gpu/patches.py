"""What nodes have done to a MODEL's weights, as plain values and tensors, there and back."""

from __future__ import annotations

import uuid
from typing import Any

import comfy.model_patcher
import comfy.weight_adapter
import torch
from torch import Tensor

from ....skyreels_model.store.digests import digest
from ..film.describe import name_of

ADAPTERS = {kind.__name__: kind for kind in comfy.weight_adapter.adapters}
Tensors = dict[str, Tensor]


def write_patches(patcher: comfy.model_patcher.ModelPatcher) -> tuple[Any, Tensors]:
    """A patcher's weight patches as lists, with the tensors beside; ValueError for foreign ones."""
    tensors: Tensors = {}
    found: list[Any] = []
    for key, patches in sorted(patcher.patches.items()):
        for strength, value, strength_model, offset, function in patches:
            if function is not None:
                raise ValueError(
                    f"a node has put its own function on the weight {key} ({name_of(function)}), "
                    f"which SkyReels-V2 Multi-GPU cannot bring to other GPUs. Connect the model "
                    f"without that node, or without SkyReels-V2 Multi-GPU"
                )
            values = [strength, value, strength_model, offset]
            found.append([key, *(_write(part, tensors, key) for part in values)])
    return found, tensors


def identify(found: Any, tensors: Tensors) -> str:
    """The digest of what `write_patches` returns, of all numbers."""
    return digest([found, {name: tensor.cpu() for name, tensor in tensors.items()}])


def read_patches(found: Any, tensors: Tensors, patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Put patches on a patcher in place of all that it has."""
    patcher.patches = {}
    for key, *values in found:
        strength, value, strength_model, offset = (_read(part, tensors) for part in values)
        one = (strength, value, strength_model, offset, None)
        patcher.patches.setdefault(key, []).append(one)
    patcher.patches_uuid = uuid.uuid4()  # by which the host knows that it has to apply them


def _write(value: Any, tensors: Tensors, key: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().as_subclass(Tensor)
        return {"tensor": name}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_write(part, tensors, key) for part in value]}
    if isinstance(value, torch.Size):
        return {"tuple": list(value)}
    kind = type(value).__name__
    if ADAPTERS.get(kind) is type(value):
        keys = sorted(map(str, value.loaded_keys))
        return {"adapter": kind, "keys": keys, "weights": _write(value.weights, tensors, key)}
    raise ValueError(
        f"a node has put a {name_of(value)} on the weight {key}, which SkyReels-V2 Multi-GPU does "
        f"not know. Connect the model without that node, or without SkyReels-V2 Multi-GPU"
    )


def _read(value: Any, tensors: Tensors) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "adapter" in value:
        weights = _read(value["weights"], tensors)
        return ADAPTERS[value["adapter"]](set(value["keys"]), weights)
    if "list" in value:
        return [_read(part, tensors) for part in value["list"]]
    return tuple(_read(part, tensors) for part in value["tuple"])
