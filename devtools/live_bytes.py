"""Bytes alive in tensors while code runs, exactly, on any device: also on meta, without computing.

What a library allocates inside of one operator (a product's workspace) is not seen, nor what an
allocator keeps in reserve.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make within it; `peak` is the most alive at once.

    Use it under `torch.no_grad()` or with gradients: under `inference_mode` composite operators
    arrive whole, and what they make inside is hidden.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.last = ""  # the operator at which the peak was reached
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._add(tensor, made=False)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, made=True)
        if self.now > self.peak:
            self.peak, self.last = self.now, str(func)
        return out

    def _add(self, tensor: Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes() if made else 0
        self.now += size

        def gone(_reference: Any) -> None:
            self.now -= size
            del self._known[address]

        self._known[address] = weakref.ref(storage, gone)
