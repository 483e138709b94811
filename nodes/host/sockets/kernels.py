"""Our Triton kernels in the host: used where it was started with --enable-triton-backend.

That is its own switch for such kernels, off by default: no card has run ours yet.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import comfy.cli_args
import comfy.ops
import torch
from torch import Tensor, nn

from ....skyreels_model.kernels import NARROW, FusedBlocks, Kernels, Weights, find_kernels
from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.model.network import RunBlock, run_directly

PRODUCT = comfy.ops.disable_weight_init.Linear


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
    if not usable or not asked_for():
        return run_directly
    kernels = kernels_of(device, dtype, config.dim, config.head_dim)
    return run_directly if kernels is None else FusedBlocks(kernels, HostWeights())


def asked_for() -> bool:
    """Whether the host was started for Triton's kernels."""
    given = comfy.cli_args.args
    return given.enable_triton_backend and not getattr(given, "disable_triton_backend", False)


@functools.cache
def kernels_of(device: torch.device, dtype: torch.dtype, dim: int, head_dim: int) -> Kernels | None:
    """The kernels that passed their test there, tried once; None where they did not."""
    return find_kernels(device, dtype, dim, head_dim)
