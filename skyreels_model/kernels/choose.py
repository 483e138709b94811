"""Whether the kernels are right on a card: held to float64 numbers before they are used."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear

from . import plain
from .fused import Affine, Kernels, ProductGelu, cublas_gelu

LOG = logging.getLogger("skyreels_v2")
EPS = 1e-6
# (samples, frames, tokens of a frame): one token, odd numbers, two samples.
CASES = ((1, 1, 1), (1, 3, 7), (2, 2, 5))
# How much further from float64 than PyTorch's operators, which round to the nearest number, they
# may be: what cuts off instead, as Triton's interpreter does, is twice as far.
TIMES = 2.5
LEAST = 1e-6  # of rounding, where those are exact


def find_kernels(
    device: torch.device, dtype: torch.dtype, dim: int, head_dim: int
) -> Kernels | None:
    """The kernels that are right on this card for a model of this width; None where they are not.

    Either is said in the log.
    """
    try:
        source: Any = importlib.import_module(".triton_source", __package__)
    except Exception as error:  # a broken installation fails in kinds of its own
        LOG.info("Blocks run by PyTorch's operators alone: there is no Triton (%s)", error)
        return None
    wrong = find_fault(Kernels(source.start), device, dtype, dim, head_dim)
    if wrong:
        LOG.warning("Blocks run by PyTorch's operators alone: a kernel is not right (%s)", wrong)
        return None
    LOG.info("Triton's kernels run between the products of blocks: they passed their test")
    wrong = find_product_fault(cublas_gelu, device, dtype, dim)
    if wrong:
        LOG.warning("A feed-forward's GELU is not made with its product, which fails (%s)", wrong)
    return Kernels(source.start, None if wrong else cublas_gelu)


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
        own = run_all(plain.PLAIN, *given)
        try:
            found = run_all(kernels, *given)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
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


def find_product_fault(
    product: ProductGelu, device: torch.device, dtype: torch.dtype, dim: int
) -> str:
    """What is wrong with a product that makes its GELU; empty where nothing is."""
    generator = torch.Generator().manual_seed(0)
    shapes = (33, dim), (4 * dim, dim), (4 * dim,)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    given = [t.to(device, dtype) for t in (x, weight / dim**0.5, bias)]
    exact = plain.product_gelu(*(t.double() for t in given))
    own = gelu(linear(*given), approximate="tanh")
    try:
        return judge(product(*given), own, exact)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def judge(found: Tensor, own: Tensor, right: Tensor) -> str:
    """What is wrong with a result, by how far PyTorch's own is from the right one."""
    if found.shape != right.shape:
        return f"has shape {tuple(found.shape)} instead of {tuple(right.shape)}"
    away, least = (found.double() - right).norm(), LEAST * right.norm()
    # Not `>`, which lets numbers pass that are none.
    if not away <= TIMES * max((own.double() - right).norm(), least):
        return f"is off by {float(away / right.norm()):.1e}"
    return ""
