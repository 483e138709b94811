"""Attention back ends: one call, `attend(q, k, v, heads)`, on (B, L, heads * head_dim)."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Attend(Protocol):
    """Scaled dot-product attention, scale 1/sqrt(head_dim), no mask."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """q (B, Lq, heads*d), k and v (B, Lk, heads*d) -> (B, Lq, heads*d)."""
        ...


def sdpa(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """PyTorch's own attention; bias (Lk,) is added to the scores of each key."""
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, L, d)
    mask = None if bias is None else bias[None, None, None]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)  # (B, Lq, heads * d)


def last_repeated(attend: Attend, times: int) -> Attend:
    """Attention in which the last key and its value stand for `times` equal ones.

    Equal keys get equal weight: one with log(times) on its score is exactly as much as all of them.
    A back end that takes no bias is given all of them, and so is a narrow number format, in which
    the logarithm would be a percent off.
    """

    def attend_to_all(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        if attend is sdpa and q.dtype.itemsize >= 4:
            bias = q.new_zeros(k.shape[1])
            bias[-1] = math.log(times)
            return sdpa(q, k, v, heads, bias)
        k, v = (torch.cat([t, t[:, -1:].expand(-1, times - 1, -1)], dim=1) for t in (k, v))
        return attend(q, k, v, heads)

    return attend_to_all
