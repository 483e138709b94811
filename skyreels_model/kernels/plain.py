"""What the kernels compute, by PyTorch's operators in float32, rounded once as they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from .fused import Kernels


def start(
    name: str,
    rows: int,
    reads: Sequence[Any],
    writes: Sequence[Any],
    **numbers: Any,
) -> None:
    """A `Start` of `fused`."""
    if name == "border":
        border(rows, reads, writes, **numbers)
    else:
        turn(rows, reads, writes, **numbers)


def spread(rows: Tensor, step: int, count: int, tokens: int) -> Tensor:
    """Rows for frames, a step apart in memory, for each token: (tokens, D), float32 or wider."""
    dim = rows.shape[-1]
    if not step:
        return widen(rows)
    return widen(rows.as_strided((count // tokens, dim), (step, 1)).repeat_interleave(tokens, 0))


def widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def border(
    rows: int,
    reads: Sequence[Any],
    writes: Sequence[Any],
    tokens: int,
    gate_step: int,
    step: int,
    eps: float,
    DIM: int,
    OFFSET: float,
) -> None:
    x, y, gate, shift, scale = reads
    x_out, out = writes
    total = widen(x)
    if y is not None:
        added = widen(y)
        if gate is not None:
            added = added * spread(gate, gate_step, rows, tokens).view_as(added)
        total = total + added
        x_out.copy_(total)
    centred = total - total.mean(dim=-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)
    factor, offset = (spread(t, step, rows, tokens) for t in (scale, shift))
    made = normed.flatten(0, 1) * (OFFSET + factor) + offset
    out.copy_(made.view(x.shape))


def turn(
    rows: int,
    reads: Sequence[Any],
    writes: Sequence[Any],
    tokens: int,
    eps: float,
    DIM: int,
    HEAD: int,
) -> None:
    x, weight, rope = reads
    given = widen(x)
    normed = given * torch.rsqrt(given.square().mean(dim=-1, keepdim=True) + eps) * widen(weight)
    pairs = normed.unflatten(2, (-1, HEAD // 2, 2))  # (B, L, heads, d / 2, 2)
    turned = torch.stack([(pairs * row).sum(dim=-1) for row in rope.to(pairs).unbind(-2)], dim=-1)
    writes[0].copy_(turned.view(x.shape))


def product_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The GELU of a product before it is rounded."""
    return gelu(linear(widen(x), widen(weight), widen(bias)), approximate="tanh").to(x.dtype)


PLAIN = Kernels(start, product_gelu)
