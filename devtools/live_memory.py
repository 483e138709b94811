"""How many bytes of tensors live at a time: the peak of what a piece of code makes, on any device.

It sees what PyTorch's dispatcher sees: results of operations, not the scratch memory inside one.
On the meta device it tells what a full-size model would need without allocating it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the storages made inside of the block: `live` bytes now, `peak` bytes at most.

    `device` counts those of one device type only. Storages from before the block count nothing,
    until an operation inside of it returns them: name these in `known`.
    """

    def __init__(self, *known: torch.Tensor, device: str | None = None) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._device = device
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            self._see(tensor, 0)

    def reset_peak(self) -> None:
        """Begin the peak anew at what lives now."""
        self.peak = self.live

    def _see(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            del self._seen[key]
            self.live -= size

        # PyTorch keeps one Python object for a storage until the memory itself is freed.
        self._seen[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                wanted = self._device in (None, leaf.device.type)
                self._see(leaf, leaf.untyped_storage().nbytes() if wanted else 0)
        return result
