"""The kernels in Triton, which is imported with this file; `fused` says what each is given.

A program does one token. It reads the whole token before it writes, so that a kernel may write over
what it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS_A_WARP, MOST_WARPS = 512, 16


@triton.jit
def border(
    x,
    y,
    gate,
    shift,
    scale,
    x_out,
    out,
    tokens,
    gate_step,
    step,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """out = norm(x + y * gate) * (OFFSET + scale) + shift, and the sum in x_out, if there is y."""
    row = tl.program_id(0).to(tl.int64)
    frame = row // tokens
    at = tl.arange(0, BLOCK)
    inside = at < DIM
    total = tl.load(x + row * DIM + at, mask=inside, other=0.0)
    if y is not None:
        added = tl.load(y + row * DIM + at, mask=inside, other=0.0).to(tl.float32)
        if gate is not None:
            added *= tl.load(gate + frame * gate_step + at, mask=inside, other=0.0)
        total += added
        tl.store(x_out + row * DIM + at, total, mask=inside)
    centred = tl.where(inside, total - tl.sum(total) / DIM, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred) / DIM + eps)
    factor = tl.load(scale + frame * step + at, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + frame * step + at, mask=inside, other=0.0).to(tl.float32)
    made = normed * (OFFSET + factor) + offset
    tl.store(out + row * DIM + at, made.to(out.dtype.element_ty), mask=inside)


@triton.jit
def turn(
    x,
    weight,
    rope,
    out,
    tokens,
    eps,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD: tl.constexpr,
):
    """out = RMS norm of x, its adjacent pairs turned by a matrix for each pair of a head."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < DIM
    given = tl.load(x + row * DIM + at, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    normed = given * tl.rsqrt(tl.sum(given * given) / DIM + eps) * factor
    first, second = tl.split(tl.reshape(normed, (BLOCK // 2, 2)))
    # A matrix [[a, b], [c, d]] for each pair: 2 numbers for each of the token's.
    entries = tl.arange(0, 2 * BLOCK) % (2 * HEAD)
    matrices = tl.load(rope + (row % tokens) * 2 * HEAD + entries)
    left, right = tl.split(tl.reshape(matrices, (BLOCK // 2, 2, 2)))
    a, c = tl.split(left)
    b, d = tl.split(right)
    made = tl.interleave(a * first + b * second, c * first + d * second)
    tl.store(out + row * DIM + at, made.to(out.dtype.element_ty), mask=inside)


KERNELS = {"border": border, "turn": turn}


def start(
    name: str, rows: int, reads: Sequence[Any], writes: Sequence[Tensor | None], **numbers: Any
) -> None:
    """Run a kernel over so many tokens: the `Start` of `fused`."""
    block = triton.next_power_of_2(numbers["DIM"])
    warps = count_warps(block)
    with torch.cuda.device_of(reads[0]):
        KERNELS[name][(rows,)](*reads, *writes, **numbers, BLOCK=block, num_warps=warps)


def count_warps(block: int) -> int:
    """Warps for a program of so many lanes."""
    return max(1, min(MOST_WARPS, block // NUMBERS_A_WARP))
