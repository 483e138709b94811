"""What the kernels of a block are given, and what they move: each reads and writes once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

# product_gelu(x, weight, bias) -> GELU (tanh form) of the product (n, hidden), made with it.
ProductGelu = Callable[[Tensor, Tensor, Tensor], Tensor]


class Start(Protocol):
    """Runs a kernel over rows of a token each: Triton's, PyTorch's operators, or a count."""

    def __call__(
        self,
        name: str,
        rows: int,
        reads: Sequence[Tensor | None],
        writes: Sequence[Tensor | None],
        **numbers: Any,
    ) -> None:
        """reads, writes: what the kernel reads and writes, in its order, each once."""
        ...


class Affine(NamedTuple):
    """What a norm is followed by: norm * (offset + scale) + shift.

    scale, shift: (B, T, D) with an offset of 1, a modulation's; or (D,) with 0, a layer's.
    """

    scale: Tensor
    shift: Tensor
    offset: float


@dataclass(frozen=True)
class Kernels:
    """The kernels of a block.

    product_gelu: a product that makes its GELU, too; None has a GELU of its own after it.
    """

    start: Start
    product_gelu: ProductGelu | None = None

    def norm(self, x: Tensor, affine: Affine, eps: float, dtype: torch.dtype) -> Tensor:
        """LayerNorm of x (B, L, D) float32 and what follows it, in `dtype`."""
        return self._border(x, None, None, affine, eps, dtype)

    def add_norm(
        self, x: Tensor, y: Tensor, gate: Tensor | None, affine: Affine, eps: float
    ) -> Tensor:
        """x += y * gate, in place, and the norm of that in the dtype of y.

        x (B, L, D) float32; y (B, L, D); gate (B, T, D) float32, None is 1.
        """
        return self._border(x, y.contiguous(), gate, affine, eps, y.dtype)

    def _border(
        self,
        x: Tensor,
        y: Tensor | None,
        gate: Tensor | None,
        affine: Affine,
        eps: float,
        dtype: torch.dtype,
    ) -> Tensor:
        batch, length, dim = x.shape
        framed = gate if affine.scale.ndim == 1 else affine.scale
        frames = batch if framed is None else batch * framed.shape[1]
        out = torch.empty_like(x, dtype=dtype)
        self.start(
            "border",
            batch * length,
            (x, y, gate, affine.shift, affine.scale),
            (None if y is None else x, out),
            tokens=batch * length // frames,
            gate_step=frame_step(gate),
            step=frame_step(affine.scale),
            eps=eps,
            DIM=dim,
            OFFSET=affine.offset,
        )
        return out

    def norm_turn(self, x: Tensor, weight: Tensor, rope: Tensor, eps: float) -> Tensor:
        """RMS norm of x (B, L, D) with weight (D,), turned by rope (1, L, 1, d/2, 2, 2), in x."""
        batch, length, dim = x.shape
        x = x.contiguous()
        numbers = {"tokens": length, "eps": eps, "DIM": dim, "HEAD": 2 * rope.shape[3]}
        self.start("turn", batch * length, (x, weight, rope), (x,), **numbers)
        return x


def frame_step(numbers: Tensor | None) -> int:
    """How far apart in memory the rows (B, T, D) of one frame and the next are; 0 of one row (D,).

    The frames of all samples follow each other at that distance.
    """
    if numbers is None or numbers.ndim == 1:
        return 0
    # The stride of a side of one says nothing.
    return numbers.stride(1 if numbers.shape[1] > 1 else 0)


def cublas_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A product whose GELU is made before it is written (cuBLASLt); on a CPU it is the erf form."""
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)
