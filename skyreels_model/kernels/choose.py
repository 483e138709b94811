"""Whether the kernels are right on a card: held to float64 numbers before they are used."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from ..lack import lacks_memory
from . import plain
from .fused import Affine, Kernels, ProductGelu, cublas_gelu

LOG = logging.getLogger("skyreels_v2")
EPS = 1e-6
# (samples, frames, tokens of a frame): one token, odd numbers, two samples, one time for all.
CASES = ((1, 1, 1), (1, 3, 7), (2, 2, 5), (2, 1, 4))
# How much further from float64 than PyTorch's operators, which round to the nearest number, they
# may be: what cuts off instead, as Triton's interpreter does, is twice as far.
TIMES = 2.5
LEAST = 1e-6  # of rounding, where those are exact
MOST_TOLD = 300  # letters of an error


def find_kernels(
    device: torch.device, dtype: torch.dtype, dim: int, head_dim: int
) -> Kernels | None:
    """The kernels that are right on this card for a model of this width; None where they are not.

    Either is said in the log. Raises the error of memory that does not suffice for the test, which
    says nothing about the kernels.
    """
    try:
        source: Any = importlib.import_module(".triton_source", __package__)
    except Exception as error:  # a broken installation fails in kinds of its own
        LOG.info("Blocks run by PyTorch's operators alone: there is no Triton (%s)", error)
        return None
    try:
        wrong = find_fault(Kernels(source.start), device, dtype, dim, head_dim)
    except Exception as error:  # of a compiler that is missing, for instance
        if lacks_memory(error):
            raise
        told = shorten(error)
        LOG.info("Blocks run by PyTorch's operators alone: Triton cannot work here (%s)", told)
        return None
    if wrong:
        LOG.warning("Blocks run by PyTorch's operators alone: a kernel is not right (%s)", wrong)
        return None
    LOG.info("Triton's kernels run between the products of blocks: they passed their test")
    product = cublas_gelu if product_is_right(cublas_gelu, device, dtype, dim) else None
    return Kernels(source.start, product)


def shorten(error: Exception) -> str:
    """An error in a line; compilers say more than that."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MOST_TOLD]


def find_fault(
    kernels: Kernels, device: torch.device, dtype: torch.dtype, dim: int, head_dim: int
) -> str:
    """What is wrong with the kernels by float64 numbers; empty where nothing is."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    for batch, frames, tokens in CASES:
        length = frames * tokens
        given = [
            draw(batch, length, dim),
            draw(batch, length, dim).to(dtype),
            draw(batch, frames, 6, dim),
            draw(dim).to(dtype),
            draw(dim).to(dtype),
            draw(1, length, 1, head_dim // 2, 2, 2),
        ]
        exact = run_all(plain.PLAIN, *(t.double() for t in given))
        own, found = (run_all(ways, *given) for ways in (plain.PLAIN, kernels))
        for name, right in exact.items():
            wrong = judge(found[name], own[name], right)
            if wrong:
                return f"{name} of {batch} x {frames} x {tokens} tokens {wrong}"
    return ""


def run_all(
    kernels: Kernels,
    x: Tensor,
    y: Tensor,
    modulation: Tensor,
    weight: Tensor,
    bias: Tensor,
    rope: Tensor,
) -> dict[str, Tensor]:
    """What each kernel makes of the same numbers, in each way that blocks use it, by name."""
    shift, scale, gate = modulation.unbind(2)[:3]
    modulated, affine = Affine(scale, shift, 1.0), Affine(weight, bias, 0.0)
    total, gated = x.clone(), x.clone()
    return {
        "norm": kernels.norm(x, modulated, EPS, y.dtype),
        "norm of a sum": kernels.add_norm(total, y, None, modulated, EPS),
        "norm of a gated sum": kernels.add_norm(gated, y, gate, affine, EPS),
        "sum": total,
        "gated sum": gated,
        "norm and rotation": kernels.norm_turn(y.clone(), weight, rope, EPS),
    }


def product_is_right(
    product: ProductGelu, device: torch.device, dtype: torch.dtype, dim: int
) -> bool:
    """Whether a product that makes its GELU is right there; said in the log where it is not."""
    generator = torch.Generator().manual_seed(0)
    shapes = (33, dim), (4 * dim, dim), (4 * dim,)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    given = [t.to(device, dtype) for t in (x, weight / dim**0.5, bias)]
    exact = plain.product_gelu(*(t.double() for t in given))
    own = gelu(linear(*given), approximate="tanh")
    try:
        wrong = judge(product(*given), own, exact)
    except Exception as error:
        if lacks_memory(error):
            raise
        wrong = shorten(error)
    if wrong:
        LOG.warning("A feed-forward's GELU is not made with its product, which fails (%s)", wrong)
    return not wrong


def judge(found: Tensor, own: Tensor, right: Tensor) -> str:
    """What is wrong with a result, by how far PyTorch's own is from the right one."""
    if found.shape != right.shape:
        return f"has shape {tuple(found.shape)} instead of {tuple(right.shape)}"
    away, least = (found.double() - right).norm(), LEAST * right.norm()
    # Not `>`, which lets numbers pass that are none.
    if not away <= TIMES * max((own.double() - right).norm(), least):
        return f"is off by {float(away / right.norm()):.1e}"
    return ""
