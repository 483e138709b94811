"""What decides a film besides its plan, as plain values: models, prompts, guidance, seeds.

Two runs with equal values make equal films. What cannot be read, such as the settings of a function
that another node has put into a model, is told by its name, its constants and what it encloses.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn

from ....skyreels_model.store.digests import sample

DEEP = 8  # levels, after which a value is told by its kind alone
Patcher = comfy.model_patcher.ModelPatcher


def describe_vae(vae: comfy.sd.VAE | None) -> Any:
    """The weights of a VAE and what they are computed in."""
    if vae is None:
        return None
    return [_describe_weights(vae.first_stage_model.state_dict()), str(vae.vae_dtype)]


def describe_model(model: Patcher) -> Any:
    """A MODEL: its weights as they are in its file, and what nodes have done to it."""
    keys = model.get_key_patches()
    return {
        "weights": _describe_weights({key: found[0][0] for key, found in keys.items()}),
        "patches": describe({key: found[1:] for key, found in keys.items() if found[1:]}),
        "options": describe(model.model_options),
        "wrappers": describe(model.wrappers),
        "objects": describe(model.object_patches),
        "computed": [model.load_device.type, str(getattr(model.model, "manual_cast_dtype", None))],
    }


def _describe_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {name: describe(weight) for name, weight in weights.items()}


def describe(value: Any, depth: int = 0, whole: bool = False) -> Any:
    """A value as numbers, texts, tensors, lists, mappings; tensors by a sample unless `whole`."""
    inner = functools.partial(describe, depth=depth + 1, whole=whole)
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, Tensor):
        return _describe_tensor(value, depth, whole)
    if depth > DEEP:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [inner(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return [_name(value), *map(inner, _contents(value))]


def _describe_tensor(value: Tensor, depth: int, whole: bool) -> Any:
    # Packed weights are tensors of another kind, which hold plain ones.
    held = vars(value) if type(value) not in (Tensor, nn.Parameter, nn.Buffer) else {}
    if held:
        parts = {name: part for name, part in held.items() if not name.startswith("__")}
        return [type(value).__qualname__, describe(parts, depth + 1, whole)]
    plain = value.detach().as_subclass(Tensor)
    return plain if whole else [list(plain.shape), str(plain.dtype), sample(plain)]


def _name(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{getattr(named, '__module__', '')}.{named.__qualname__}"


def _contents(value: Any) -> Iterable[Any]:
    """What makes a function or an object the one that it is."""
    if isinstance(value, torch.dtype | torch.device | type):
        return [str(value)]
    if isinstance(value, nn.Module):
        return [value.state_dict()]
    if isinstance(value, Patcher):
        return [describe_model(value)]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if inspect.ismethod(value):
        return [value.__self__]
    if inspect.isfunction(value):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [cells, value.__defaults__, value.__code__.co_code]
    # Random names of objects are not what they do.
    return [{k: v for k, v in getattr(value, "__dict__", {}).items() if "uuid" not in k}]


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
