"""Whose attention computes a part of a ring: PyTorch's, or xfuser's where it passes a test.

xfuser (xDiT) brings FlashAttention's kernels for NVIDIA cards. Its ring has been seen to be wrong
on one system without an error, so what others bring is held to ours before it is taken.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LOG = logging.getLogger("skyreels_v2")
# q, k, v (B, heads, L, d) -> attention, the same, and the logarithm of its sums (B, heads, L).
AttendPart = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
INSTALL = "pip install xfuser flash-attn"
# (queries, keys, width of a head): odd counts, one key, and the width of the published models.
CASES = ((70, 70, 128), (33, 129, 128), (5, 1, 128))
TIMES = 2.0  # how much further from float64 than our own it may be
LEAST = 1e-6  # of rounding, where our own is exact


def choose_attention(ours: AttendPart, device: torch.device, dtype: torch.dtype) -> AttendPart:
    """xfuser's where it is installed and passes, else ours; said once in the log."""
    try:
        theirs = load_xfuser()
    except Exception as error:  # its import asks for cards, and fails in kinds of its own
        LOG.info("The ring uses PyTorch's kernels: xfuser is not there (%s; %s)", error, INSTALL)
        return ours
    wrong = find_fault(theirs, ours, device, dtype)
    if wrong:
        LOG.warning("The ring uses PyTorch's kernels: xfuser's is not right here (%s)", wrong)
        return ours
    LOG.info("The ring uses xfuser's kernel, which passed its test")
    return theirs


def load_xfuser() -> AttendPart:
    """Its attention in our form. Raises what its import raises."""
    importlib.import_module("xfuser")
    kernels: Any = importlib.import_module("yunchang.kernels")  # where xfuser takes them from
    attend = kernels.select_flash_attn_impl(kernels.AttnType.FA, stage="fwd-only")

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        parts = (part.transpose(1, 2).contiguous() for part in (q, k, v))  # (B, L, heads, d)
        how = {"dropout_p": 0.0, "softmax_scale": q.shape[-1] ** -0.5, "causal": False}
        out, log = attend(*parts, **how, window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                          return_softmax=False)  # fmt: skip
        return out.transpose(1, 2), log[:, :, : q.shape[2]].float()

    return call


def find_fault(
    theirs: AttendPart, ours: AttendPart, device: torch.device, dtype: torch.dtype
) -> str:
    """What is wrong with others' attention, measured by float64 numbers; empty where nothing is."""
    generator = torch.Generator().manual_seed(0)
    for queries, keys, width in CASES:
        given = [
            torch.randn(2, 3, count, width, generator=generator).to(device, dtype)
            for count in (queries, keys, keys)
        ]
        q, k, v = (part.double() for part in given)
        scores = q @ k.transpose(2, 3) * width**-0.5
        exact = scores.softmax(dim=3) @ v, scores.logsumexp(dim=3)
        try:
            found = theirs(*given)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        for what, right, own, made in zip(
            ("attention", "its sums"), exact, ours(*given), found, strict=True
        ):
            if made.shape != right.shape:
                return f"{what} has shape {tuple(made.shape)} instead of {tuple(right.shape)}"
            least = LEAST * right.norm()
            allowed = TIMES * max((own.double() - right).norm(), least)
            # Not `>`, which lets numbers pass that are none.
            if not (made.double() - right).norm() <= allowed:
                away = (made.double() - right).norm() / right.norm()
                return f"{what} of {queries} queries and {keys} keys is off by {away:.1e}"
    return ""
