"""One short name for a value: equal values have equal names, on any machine and in any run."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

SIZE = 16  # bytes of a digest
RUNS, RUN = 4, 16  # of numbers of a weight that stand for it


def digest(value: Any) -> str:
    """The digest of numbers, texts, tensors, dataclasses, and lists and mappings of them.

    Mappings are equal in any order of their keys. Raises TypeError for anything else, whose
    equality cannot be told by its content.
    """
    found = hashlib.blake2b(digest_size=SIZE)
    for piece in _pieces(value):
        found.update(len(piece).to_bytes(8, "little") + piece)
    return found.hexdigest()


def _pieces(value: Any) -> Iterable[bytes]:
    """The bytes of a value, each part with its kind, so that no two values have the same."""
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield tensor_bytes(value)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        # repr tells every float from every other.
        yield f"{type(value).__name__} {value!r}".encode()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield f"dataclass {type(value).__name__}".encode()
        for field in dataclasses.fields(value):
            yield field.name.encode()
            yield from _pieces(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        yield from sorted(digest([key, part]).encode() for key, part in value.items())
    elif isinstance(value, list | tuple):
        yield f"list {len(value)}".encode()
        for part in value:
            yield from _pieces(part)
    else:
        raise TypeError(f"{type(value).__name__} cannot be told from another by its content")


def tensor_bytes(value: Tensor) -> bytes:
    """A tensor's numbers as they lie in memory, in order."""
    whole = value.detach().cpu().contiguous().reshape(-1)
    return whole.view(torch.uint8).numpy().tobytes()


def sample(weight: Tensor) -> Tensor:
    """A few numbers of a tensor, in runs evenly over it; none of one on the meta device.

    Weights that were trained differ everywhere, so that reading all 28 GB of them tells no more. In
    runs, since each place of a file that is not in memory yet is a wait for the disk.
    """
    if weight.is_meta:
        return torch.zeros(0)
    if weight.numel() <= RUNS * RUN:
        return weight.detach().reshape(-1).cpu()
    last = weight.numel() - RUN
    starts = torch.tensor([last * number // (RUNS - 1) for number in range(RUNS)])
    places = (starts[:, None] + torch.arange(RUN)).reshape(-1).to(weight.device)
    # By all dimensions: a flat view of a transposed weight would be a copy of it.
    return weight.detach()[torch.unravel_index(places, weight.shape)].cpu()
