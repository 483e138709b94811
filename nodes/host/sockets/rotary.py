"""The host's kernel for rotary positions, where this machine has one."""

from __future__ import annotations

import functools

import comfy.quant_ops
import torch
from torch import Tensor

from ....skyreels_model.model.positions import Rotate, apply_rope
from ..notice import LOG

KERNEL = "apply_rope1_"
WIDTHS = (torch.float16, torch.bfloat16)  # that it is written for


def rotation(device: torch.device) -> Rotate:
    """How queries and keys are turned on a device: by the host's kernel in place, or plainly."""
    if device.type == "cuda" and has_kernel():
        return rotate_in_place
    return apply_rope


@functools.cache
def has_kernel() -> bool:
    """Whether the host's library has its CUDA kernels here; said once in the log if not."""
    library = getattr(comfy.quant_ops, "ck", None)
    backends = library.list_backends() if hasattr(library, KERNEL) else {}
    cuda = backends.get("cuda", {})
    found = bool(cuda.get("available") and not cuda.get("disabled"))
    found = found and KERNEL in cuda["capabilities"]
    if not found:
        why = cuda.get("unavailable_reason") or "this ComfyUI has none"
        LOG.info("No CUDA kernel for rotary positions (%s): PyTorch's operators rotate", why)
    return found


def rotate_in_place(x: Tensor, rope: Tensor, overwrite: bool) -> Tensor:
    """As `apply_rope`, by one kernel where x may be written over and has 16 bits."""
    if not overwrite or x.dtype not in WIDTHS:
        return apply_rope(x, rope, overwrite)
    turned: Tensor = comfy.quant_ops.ck.apply_rope1_(x, rope)
    return turned
