"""Our Triton kernels in the host: used where a card is new enough and they pass their test on it.

PyTorch's own compiler relies on Triton, so PyTorch for NVIDIA on Linux brings it. One switch turns
the kernels off: `SKYREELS_V2_TRITON=0` in the environment, or the host's own switch for Triton.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.ops
import torch
from torch import Tensor, nn

from ....skyreels_model.kernels import NARROW, FusedBlocks, Kernels, Weights, find_kernels
from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.model.network import RunBlock, run_directly
from ..notice import LOG
from .memory import lacks_memory

PRODUCT = comfy.ops.disable_weight_init.Linear
SWITCH, OFF = "SKYREELS_V2_TRITON", ("0", "off", "false", "no")
NEW_ENOUGH = (8, 0)  # what they were compiled for, and where bf16 is the card's own


class HostWeights(Weights):
    """The numbers of the host's layers, which it casts, moves and patches."""

    def is_product(self, layer: nn.Module) -> bool:
        """Not those that compute in 8 bits, or keep their weights in a way of their own."""
        if not isinstance(layer, PRODUCT) or layer.bias is None:
            return False
        kind, ways = type(layer), ("forward", "forward_comfy_cast_weights")
        return all(getattr(kind, way) is getattr(PRODUCT, way) for way in ways)

    @contextlib.contextmanager
    def borrow(self, layer: nn.Module, like: Tensor) -> Iterator[tuple[Tensor, Any]]:
        weight, bias, stream = comfy.ops.cast_bias_weight(layer, like, offloadable=True)
        try:
            yield weight, bias
        finally:
            comfy.ops.uncast_bias_weight(layer, weight, bias, stream)


def block_runner(device: torch.device, dtype: torch.dtype, config: ModelConfig) -> RunBlock:
    """How the blocks of a model run on a device: by our kernels where they may, or plainly."""
    usable = device.type == "cuda" and dtype in NARROW and not torch.compiler.is_compiling()
    if not usable or not are_wanted(device):
        return run_directly
    try:
        kernels = kernels_of(device, dtype, config.dim, config.head_dim)
    except Exception as error:
        if not lacks_memory(error):
            raise
        say_no_room()
        return run_directly  # this time: the next forward tries again
    return run_directly if kernels is None else FusedBlocks(kernels, HostWeights())


def are_wanted(device: torch.device) -> bool:
    """Whether the kernels are to be tried there.

    On NVIDIA cards that are new enough, unless they are switched off; on any other where the host
    was started for Triton's kernels.
    """
    given = comfy.cli_args.args
    if os.environ.get(SWITCH, "").strip().lower() in OFF:
        return False
    if getattr(given, "disable_triton_backend", False):
        return False
    if given.enable_triton_backend:
        return True
    nvidia = comfy.model_management.is_nvidia()
    return nvidia and torch.cuda.get_device_capability(device) >= NEW_ENOUGH


@functools.cache
def kernels_of(device: torch.device, dtype: torch.dtype, dim: int, head_dim: int) -> Kernels | None:
    """The kernels that passed their test there, tried once; None where they did not.

    Raises the error of memory that does not suffice for the test, and then tries again.
    """
    return find_kernels(device, dtype, dim, head_dim)


@functools.cache
def say_no_room() -> None:
    """Said once, however long there is none."""
    LOG.info("Blocks run by PyTorch's operators until there is memory to test our kernels")
