"""What small clips on a CPU need: PyTorch convolves one of them several times slower than a batch.

So their frames go as a batch. Results are the same but for rounding. Written in PyTorch's own
views: here einops would take as long as the convolution.
"""

from __future__ import annotations

from typing import Any

import torch
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
    views = x[0].unfold(1, size, stride).permute(1, 0, 4, 2, 3)  # (t, C, size, H, W)
    return conv(views)[:, :, 0].transpose(0, 1)[None]
