"""What small clips on a CPU need: PyTorch convolves one of them several times slower than a batch.

So their frames go as a batch. Results are the same but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

SMALL = 20480  # C x T x H, up to which PyTorch leaves a single clip to a loop of its own


def is_plain(x: Tensor) -> bool:
    """Whether x is float32 on a CPU, where some operations have faster equals."""
    return x.device.type == "cpu" and x.dtype == torch.float32


def is_small(x: Tensor) -> bool:
    """Whether x (B, C, T, H, W) is what goes faster as a batch of frames."""
    return is_plain(x) and x.shape[0] == 1 and x[..., 0].numel() <= SMALL


def convolve(conv: Any, x: Tensor) -> Tensor:
    """conv(x), a convolution over time without padding there: (B, C, T, H, W) -> (B, C', t, H, W).

    Of a small clip each frame goes with those that it looks back to.
    """
    size, stride = conv.kernel_size[0], conv.stride[0]
    if not is_small(x) or x.shape[2] < size + stride:
        return conv(x)  # type: ignore[no-any-return]
    views = rearrange(x.unfold(2, size, stride), "1 c t h w k -> t c k h w")
    return rearrange(conv(views), "t c 1 h w -> 1 c t h w")
