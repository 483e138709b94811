"""How queries see keys: the protocol of every back end, and those of plain PyTorch.

Another back end is one more file here, with a function of the protocol `Attend`, which a model is
given in its call (`attend=`). What ComfyUI brings is listed in `nodes/host/sockets/attention.py`.
"""

from .attend import Attend, sdpa
from .causal import block_causal

__all__ = [
    "Attend",
    "block_causal",
    "sdpa",
]
