"""Tensors that come by a link: whether there are numbers in them to count with."""

from __future__ import annotations

import torch
from torch import Tensor


def lacks_numbers(tensor: Tensor) -> str:
    """Why a tensor cannot be counted with, for an error; nothing where it can."""
    if tensor.is_meta:
        return "no numbers in it (it is on PyTorch's meta device)"
    if tensor.layout != torch.strided:
        return f"the layout {str(tensor.layout)[6:]}"
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        return f"numbers of type {str(tensor.dtype)[6:]}"
    return ""
