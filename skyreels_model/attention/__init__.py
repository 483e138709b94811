"""How queries see keys: the protocol of every back end, and those of plain PyTorch."""

from .attend import Attend, sdpa
from .causal import block_causal

__all__ = [
    "Attend",
    "block_causal",
    "sdpa",
]
