"""What networks make their layers of: a namespace with the names of `torch.nn`, or a host's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

MakeLayer = Callable[..., nn.Module]


class Operations(Protocol):
    """Layer classes with the names, arguments and parameters of `torch.nn`, which is one itself.

    A host's own layers may cast, move and patch their weights on the fly, as ComfyUI's do. For the
    diffusion transformer a namespace may also have a `Modulation`, in place of the model's, and a
    `BlockLinear`, for the blocks' large layers, the only ones whose weights may be quantised.
    """

    @property
    def Linear(self) -> MakeLayer: ...

    @property
    def Conv2d(self) -> MakeLayer: ...

    @property
    def Conv3d(self) -> MakeLayer: ...

    @property
    def LayerNorm(self) -> MakeLayer: ...

    @property
    def RMSNorm(self) -> MakeLayer: ...

    @property
    def Embedding(self) -> Callable[..., nn.Embedding]: ...


def _unfilled(layer: type[nn.Module]) -> Any:
    return type(layer.__name__, (layer,), {"reset_parameters": lambda self: None})


class Unfilled:
    """`torch.nn`'s layers without first numbers, for networks that only tell names and shapes.

    PyTorch draws them even on the meta device: half of the time that a network takes to build.
    """

    Linear = _unfilled(nn.Linear)
    Conv2d = _unfilled(nn.Conv2d)
    Conv3d = _unfilled(nn.Conv3d)
    LayerNorm = _unfilled(nn.LayerNorm)
    RMSNorm = _unfilled(nn.RMSNorm)
    Embedding = _unfilled(nn.Embedding)


def make_embedding(operations: Operations, count: int, dim: int, **placement: Any) -> nn.Embedding:
    """An embedding of a namespace; on the meta device without numbers.

    PyTorch would draw them even there, for which it imports its compiler: seconds.
    """
    on_meta = torch.device(placement["device"] or "cpu").type == "meta"
    if on_meta and operations.Embedding is nn.Embedding:
        return nn.Embedding.from_pretrained(torch.empty(count, dim, **placement))
    return operations.Embedding(count, dim, **placement)
