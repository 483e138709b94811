"""Attention back ends by name: the host's, PyTorch's own order, and whether a machine has them.

All names are offered everywhere, so that a shared workflow says what it lacks on a machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.ldm.modules.attention as host
import comfy.model_management
import torch
from torch import Tensor

from ....skyreels_model.attention import sdpa
from ....skyreels_model.rules import refusal

AUTO, PYTORCH, PYTORCH_ORDER = "auto", "pytorch", "pytorch_order"
# Where PyTorch's own order begins with cuDNN, which the host's puts after flash attention.
CUDNN_FIRST = ((9, 0), (10, 0))
NARROW = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Needs:
    """What a back end of the host needs: a package, a card from this capability on, a head size."""

    package: str
    capability: tuple[int, int]
    head_dim: int


NEEDS = {
    "sage": Needs("sageattention", (8, 0), 128),
    "sage3": Needs("sageattn3", (10, 0), 128),
    "flash": Needs("flash-attn", (8, 0), 256),
    "xformers": Needs("xformers", (6, 0), 256),
}
# What the host always has; the nearest to a back end that a machine lacks is the first.
NAMES = (AUTO, PYTORCH, PYTORCH_ORDER, *NEEDS, "sub_quad", "split")


@host.wrap_attn  # type: ignore[untyped-decorator]
def attention_pytorch_order(q: Tensor, k: Tensor, v: Tensor, heads: int, **_options: Any) -> Tensor:
    """PyTorch's attention with the kernel that PyTorch would choose on this card, (B, L, heads*d).

    Source of the order: `sdp_utils.cpp` of PyTorch.
    """
    return sdpa(q, k, v, heads)


def list_names() -> list[str]:
    """What can be asked for: the same on every machine, then what this host has besides."""
    return [*NAMES, *sorted(set(host.REGISTERED_ATTENTION_FUNCTIONS) - set(NAMES))]


def usable(dtype: torch.dtype, head_dim: int) -> dict[str, Callable[..., Any]]:
    """The functions that this machine has for such numbers and heads, by name."""
    found = {}
    for name in list_names():
        with contextlib.suppress(ValueError):
            found[name] = find_attention(name, dtype, head_dim)
    return found


def check_name(name: object) -> bool | str:
    """A node's answer to the host's question whether a back end may be chosen: True, or why not.

    None, for what comes by a link, is judged when it is there.
    """
    try:
        if name is not None:
            _find(name)
    except ValueError as error:
        return str(error)
    return True


def find_attention(name: str, dtype: torch.dtype, head_dim: int) -> Callable[..., Any]:
    """The host's function of this name, for numbers of `dtype` and heads of this size.

    Raises ValueError, with the nearest that works, where package, card, numbers or heads forbid it.
    """
    call, needs = _find(name), NEEDS.get(name)
    if needs is not None and dtype not in NARROW:
        rule = f"pytorch or auto, since {name} computes in fp16 or bf16 and this model in "
        raise refusal("attention", name, rule + str(dtype)[6:], PYTORCH)
    if needs is not None and head_dim > needs.head_dim:
        rule = f"pytorch or auto, since {name} takes heads of up to {needs.head_dim} numbers and "
        raise refusal("attention", name, f"{rule}this model's have {head_dim}", PYTORCH)
    return call


def _find(name: object) -> Callable[..., Any]:
    registered = host.REGISTERED_ATTENTION_FUNCTIONS
    if not isinstance(name, str) or (name not in NAMES and name not in registered):
        rule = f"one that this ComfyUI knows: {', '.join(list_names())}"
        raise refusal("attention", name, rule, AUTO)
    if name in (AUTO, PYTORCH_ORDER):
        plain = host.optimized_attention is host.attention_pytorch
        order = name == PYTORCH_ORDER or (plain and capability() in CUDNN_FIRST)
        return attention_pytorch_order if order else host.optimized_attention
    needs = NEEDS.get(name)
    if needs is not None:
        _check_machine(name, needs, name in registered)
    return registered[name]


def _check_machine(name: str, needs: Needs, is_there: bool) -> None:
    card = capability()
    if card is None:
        rule = f"pytorch or auto, since {name} needs an NVIDIA card and ComfyUI uses none here"
        raise refusal("attention", name, rule, PYTORCH)
    if card < needs.capability:
        least, found = (".".join(map(str, number)) for number in (needs.capability, card))
        rule = f"pytorch or auto, since {name} needs a card of compute capability {least} or higher"
        raise refusal("attention", name, f"{rule} and this one has {found}", PYTORCH)
    if not is_there:
        rule = f"pytorch or auto, since ComfyUI's Python has no package {needs.package}"
        raise refusal("attention", name, rule, PYTORCH)


def capability() -> tuple[int, int] | None:
    """Compute capability of the host's card; None where that is no NVIDIA card."""
    device = comfy.model_management.get_torch_device()
    if device.type != "cuda" or not comfy.model_management.is_nvidia():
        return None
    return torch.cuda.get_device_capability(device)
