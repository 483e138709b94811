"""What the host is told that sampling will take, so that it frees as much, and no more."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import comfy.ldm.modules.attention as attention
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import psutil

from ....skyreels_model import lack
from ....skyreels_model.budget import GB, kept_bytes, sampling_bytes
from ....skyreels_model.model.memory import Execution
from ....skyreels_model.text_encoder.tokenizer import MAX_LENGTH
from ..notice import warn
from .kept import count_kept, count_prompts
from .sharing import find_sharing, nobody
from .tea_cache import COMPILED, count_residuals

T = TypeVar("T")
# They hold the scores of all queries and keys, or as many as the host finds room for.
WITH_SCORES = ("attention_basic", "attention_split", "attention_sub_quad")
OVERRIDE = "optimized_attention_override"  # of the host's transformer options
# They make quantised copies of what they are given: as `Execution` calls them.
WITH_COPIES = {
    "sage": ("attention_sage", "attention3_sage"),
    "int8": ("attention_comfy_kitchen_int8",),
}


def memory_required(
    model: Any, shape: Sequence[int], cond_shapes: Mapping[str, Sequence[Sequence[int]]]
) -> int:
    """Bytes beside the weights for a `HostModel` at work on latents of shape (B, C, F, h, w).

    cond_shapes: of the conditions in the batch, by their names in the model's call.
    """
    batch, _, frames, height, width = shape
    itemsize = comfy.model_management.dtype_size(model.get_dtype_inference())
    rows = max((text[1] for text in cond_shapes.get("c_crossattn", ())), default=MAX_LENGTH)
    config = model.diffusion_model.config
    execution = describe_execution(model)
    needed = sampling_bytes(config, batch, frames, height, width, itemsize, execution, rows)
    if model.kept is not None:
        count, storage = model.kept[0], model.kept[1].keeping.storage
        kept = kept_bytes(config, count, height, width, 1 if storage.narrow else itemsize)
        needed += 0 if storage.in_ram else kept
    sharing = model.sharing()
    return int(sharing.memory(needed, shape)) if sharing else needed


def describe_execution(model: Any) -> Execution:
    """How a `HostModel` runs its forwards, as far as memory depends on it."""
    transformer = model.diffusion_model
    quantized = model.model_config.custom_operations is not None
    return Execution(
        casts=model.manual_cast_dtype is not None or quantized,
        quantizes=any(map(quantizes_inputs, transformer.blocks[0].modules())),
        # What another node has put in its place is a function of its own: often SageAttention.
        attention="sage" if model.overridden else kind_of(transformer.attention),
        compiled=model.compiled,
        residuals=model.residuals,
        keeps=model.kept is not None,
    )


def kind_of(attend: Any) -> str:
    """What `Execution` calls an attention function of the host's."""
    return next((kind for kind, names in WITH_COPIES.items() if holds(attend, names)), "flash")


def note_execution(
    executor: Any,
    patcher: comfy.model_patcher.ModelPatcher,
    shape: Sequence[int],
    conds: Mapping[str, Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Tell a model, before the host asks what it needs, how it will be run.

    The host asks the model; whether it is compiled, cached, shared or sees by another node's
    attention is its patcher's.
    """
    options = patcher.model_options
    patcher.model.compiled = COMPILED in options
    patcher.model.overridden = OVERRIDE in options["transformer_options"]
    sharing = find_sharing(options["transformer_options"])
    # The model may stay when what shares it has gone, and is to go, with its processes.
    patcher.model.sharing = weakref.ref(sharing) if sharing else nobody
    if sharing:
        sharing.prepare(patcher, conds)
    given = options["transformer_options"]
    patcher.model.residuals = count_residuals(given, shape[0], conds)
    patcher.model.kept = count_kept(given, count_prompts(shape[0], conds))
    return executor(patcher, shape, conds, *args, **kwargs)


def quantizes_inputs(layer: Any) -> bool:
    """Whether a layer of the host's has products in 8 bits or less, and converts what it is given.

    Its fp8 mode ("--fast fp8_matrix_mult") does so for each layer, otherwise a quantised weight.
    """
    fast = getattr(comfy.ops, "fp8_ops", None)
    if fast is not None and isinstance(layer, fast.Linear):
        return True
    native = getattr(layer, "layout_type", None) is not None
    return native and not getattr(layer, "_full_precision_mm", False)


def holds(call: Any, names: Sequence[str] = WITH_SCORES) -> bool:
    """Whether a call is one of the host's attentions of these names, by default those with scores.

    They need memory beyond their inputs and what they return.
    """
    return call in [getattr(attention, name, None) for name in names]


def machine_ram() -> int:
    """Bytes of this machine's RAM."""
    return int(comfy.model_management.total_ram * 2**20)


def card() -> tuple[str, int] | None:
    """Name and bytes of the device that the host samples on; None where that is the processor."""
    management = comfy.model_management
    device = management.get_torch_device()
    if management.is_device_cpu(device):
        return None
    name = management.get_torch_device_name(device)
    # "cuda:0 NVIDIA GeForce RTX 4090 : native": the part for people.
    name = name.split(" : ")[0].removeprefix(f"{device} ")
    return name, int(management.get_total_memory(device))


def require_ram(what: str, needed: int, advice: str) -> None:
    """Raise ValueError where a result would not fit into what RAM and swap are free.

    Systems hand out more memory than they have, and end the program that then writes to it.
    what: the input that asks for it, and for how much.
    """
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    if needed > free:
        raise ValueError(
            f"{what} needs {needed / GB:.1f} GB of RAM, and {free / GB:.1f} GB are free; {advice}"
        )


def lacks_memory(error: Exception) -> bool:
    """As of `lack`, and as the host knows its own."""
    return lack.lacks_memory(error) or comfy.model_management.is_oom(error)


def explain_lack(what: str, advice: str) -> contextlib.AbstractContextManager[None]:
    """As of `lack`, for all errors that the host knows."""
    return lack.explain_lack(what, advice, lacks_memory)


def try_alone(what: str, advice: str, work: Callable[[], T]) -> T:
    """What `work` gives; where memory does not suffice, at a second try without other models."""
    try:
        return work()
    except Exception as error:
        if not lacks_memory(error):
            raise
    # Outside of the except block, which would keep the failed call's tensors alive.
    warn(f"{what}: out of memory; trying once more without any other model on the device")
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    with explain_lack(what, f"all other models were unloaded. {advice}"):
        return work()
