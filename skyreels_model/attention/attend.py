"""Attention back ends: one call, `attend(q, k, v, heads)`, on (B, L, heads * head_dim)."""

from __future__ import annotations

from typing import Protocol

from einops import rearrange
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Attend(Protocol):
    """Scaled dot-product attention, scale 1/sqrt(head_dim), no mask."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """q (B, Lq, heads*d), k and v (B, Lk, heads*d) -> (B, Lq, heads*d)."""
        ...


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """PyTorch's own attention: flash or memory-efficient kernels where the device has them."""
    q, k, v = (rearrange(t, "b l (h d) -> b h l d", h=heads) for t in (q, k, v))
    return rearrange(scaled_dot_product_attention(q, k, v), "b h l d -> b l (h d)")
