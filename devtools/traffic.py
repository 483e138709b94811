"""What a block moves through memory and starts on a device beside products and attention.

Counted from the operators that run, on any device: also on meta, without computing.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skyreels_model.attention import Attend
from skyreels_model.config import ModelConfig
from skyreels_model.kernels import FusedBlocks, Kernels
from skyreels_model.kernels.fused import cublas_gelu
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.layers import BlockInputs
from skyreels_model.model.memory import CLIP_TOKENS
from skyreels_model.model.network import run_directly
from skyreels_model.model.positions import Rotate, apply_rope, rope_table

from .live_bytes import flash, gpu_kernels

PRODUCTS = {"addmm", "mm", "bmm", "linear", "convolution", "_addmm_activation"}
# They write over what they are given without reading it.
WRITERS = {"copy_", "fill_", "zero_"}


class Traffic(TorchDispatchMode):
    """Bytes read and written, and kernels started, by operator; products and views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: collections.Counter[str] = collections.Counter()
        self.launches: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name, schema = func._schema.name.partition("::")[2], func._schema
        given = dict(zip([a.name for a in schema.arguments], args, strict=False)) | kwargs
        written = [
            given.get(a.name)
            for a in schema.arguments
            if a.alias_info is not None and a.alias_info.is_write
        ]
        if all(one.alias_info is None for one in schema.returns):
            written.append(out)
        if not tree_leaves(written) or name in PRODUCTS or "empty" in name:
            return out
        read = [v for k, v in given.items() if k != "out" and not (k == "self" and name in WRITERS)]
        self.launches[name] += 1
        self.bytes[name] += sum(map(moved, tree_leaves((read, written))))
        return out

    def start(
        self,
        name: str,
        _rows: int,
        reads: Sequence[Tensor | None],
        writes: Sequence[Tensor | None],
        **_numbers: Any,
    ) -> None:
        """A kernel of the model's (`skyreels_model.kernels`), counted and not run."""
        self.launches[name] += 1
        self.bytes[name] += sum(map(moved, (*reads, *writes)))


def moved(value: Any) -> int:
    """Bytes of what a tensor is in memory: a broadcast number is there once."""
    if not isinstance(value, Tensor):
        return 0
    sizes = zip(value.shape, value.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride) * value.itemsize


def rotate_in_place(x: Tensor, rope: Tensor, _overwrite: bool) -> Tensor:
    """A stand-in for a kernel that rotates in place."""
    return x.mul_(rope[..., :1, 0, 0])


def block_traffic(
    config: ModelConfig,
    size: tuple[int, int, int],
    dtype: torch.dtype = torch.bfloat16,
    rotate: Rotate = apply_rope,
    attend: Attend = flash,
    fused: bool = False,
) -> Traffic:
    """What one block without gradients moves on CUDA, counted on the meta device.

    size: latent frames, rows and columns of tokens. fused: by our kernels, where it may be.
    """
    made = functools.partial(torch.empty, dtype=dtype, device="meta")
    block = SkyReelsModel(config, dtype=dtype, device="meta").requires_grad_(False).blocks[0]
    image = CLIP_TOKENS if config.model_type == "i2v" else 0
    given = BlockInputs(
        modulation=made(1, size[0], 6, config.dim, dtype=torch.float32),
        context=made(1, image + 512, config.dim),
        rope=rope_table(size, config.head_dim, torch.device("meta")),
        image_tokens=image,
        attend_self=attend,
        attend_context=attend,
        rotate=rotate,
        may_overwrite=True,
    )
    x = made(1, math.prod(size), config.dim, dtype=torch.promote_types(dtype, torch.float32))
    with torch.no_grad(), gpu_kernels(), Traffic() as traffic:
        run = FusedBlocks(Kernels(traffic.start, cublas_gelu)) if fused else run_directly
        run(0, block, x, given)
    return traffic


def count_streams(traffic: Traffic, config: ModelConfig, size: tuple[int, int, int]) -> float:
    """Bytes as reads and writes of a 16-bit tensor of the tokens, (1, L, dim)."""
    return sum(traffic.bytes.values()) / (math.prod(size) * config.dim * 2)
