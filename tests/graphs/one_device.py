"""A GPU's rule on any device: no operator meets tensors of two."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OneDevice(TorchDispatchMode):
    """Refuses operators, but for copies, on tensors of several devices, as a GPU would."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        aten = torch.ops.aten
        copies = aten.copy_, aten._to_copy, aten.to
        if func.overloadpacket not in copies:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            devices = {tensor.device.type for tensor in given if tensor.ndim}
            assert len(devices) < 2, f"{func} on {devices}: {[tuple(t.shape) for t in given]}"
        return func(*args, **kwargs)
