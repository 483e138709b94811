"""Kernels for NVIDIA cards that do at once what lies between a block's products and attention.

The model knows none of them: a forward is given `FusedBlocks` as its `run_block`. `fused` says what
each kernel computes, `plain` does the same by PyTorch's operators, `triton_source` is the kernels,
`choose` tries them on a card before they are used.
"""

from .block import NARROW, FusedBlocks, Weights
from .choose import find_kernels
from .fused import Kernels

__all__ = ["NARROW", "FusedBlocks", "Kernels", "Weights", "find_kernels"]
