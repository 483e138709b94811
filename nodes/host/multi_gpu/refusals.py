"""What cannot be brought to other GPUs, refused by the name of who did it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_patcher

from ..film.describe import functions_of, name_of
from ..sockets.model import load_patcher
from ..sockets.tea_cache import COMPILED

NODE = "SkyReels-V2 Multi-GPU"
INSIDE = ("diffusion_model", "manual_cast_dtype")  # what a worker has a copy of
ADVICE = f"Connect the model without that node, or without {NODE}"


def require_ours(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Raise ValueError for a model of another loader, which a worker could not load."""
    made = patcher.cached_patcher_init
    if made is None or made[0] is not load_patcher:
        kind = type(patcher.model.diffusion_model).__name__
        raise ValueError(
            f"model is a {kind} from another loader; {NODE} needs a model from SkyReels-V2 Model "
            f"Loader"
        )


def refuse_split(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Raise ValueError for a model whose prompts the host itself computes on several GPUs."""
    if patcher.get_additional_models_with_key("multigpu"):
        raise ValueError(
            f"model has MultiGPU CFG Split and {NODE}, which each give the prompts to several "
            f"GPUs. Use one of the two"
        )


def check_patcher(patcher: comfy.model_patcher.ModelPatcher, conds: Mapping[str, Any]) -> None:
    """Raise ValueError for what nodes have done that workers cannot do."""
    refuse_split(patcher)
    options = patcher.model_options
    objects = [key for key in patcher.object_patches if key.startswith(INSIDE)]
    for key in objects:
        _refuse(f"has replaced {key} by a {name_of(patcher.object_patches[key])}")
    if COMPILED in options:
        _refuse("compiles the model (torch.compile)")
    for name, found in patcher.injections.items():
        _refuse(f"puts layers into the model while it runs ({name}: {name_of(found[0])})")
    if patcher.weight_wrapper_patches:
        _refuse(f"wraps weights ({', '.join(patcher.weight_wrapper_patches)})")
    if any(cond.get("hooks") for named in conds.values() for cond in named or ()):
        _refuse("has put hooks on a prompt (a LoRA for some steps or places)")
    check_options(options["transformer_options"])


def check_options(options: Mapping[str, Any]) -> None:
    """The same for the options of a forward, where nodes put what is done to blocks."""
    replaced = options.get("patches_replace", {})
    for function in functions_of([replaced, options.get("patches", {})]):
        _refuse(f"changes the model's blocks or attention ({name_of(function)})")
    override = options.get("optimized_attention_override")
    if override is not None:
        _refuse(f"replaces attention ({name_of(override)})")


def _refuse(what: str) -> None:
    raise ValueError(f"a node {what}, which {NODE} cannot bring to other GPUs. {ADVICE}")
