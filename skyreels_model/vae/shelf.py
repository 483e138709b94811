"""Where a tile's cache lies between its turns: one block of memory, which is used again each turn.

New memory is handed out page by page as it is written to, which takes longer than a copy over the
bus. And a device copies twice as fast or better from and to memory that is pinned: then it reads
and writes there itself, where otherwise a driver's own buffers lie in between. So a block is made
and pinned once, as a whole, and lasts as long as its tile.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ALIGNED = 256  # bytes at which each tensor begins
# pin(block) -> what takes it back; None where the block stays as it was.
Pin = Callable[[Tensor], Callable[[], object] | None]


def leave_unpinned(_block: Tensor) -> None:
    """The `Pin` of who has none."""


class Shelf:
    """A block with a place for each tensor of a cache."""

    def __init__(self, cache: Sequence[Tensor], home: torch.device, pin: Pin) -> None:
        sizes = [-(-past.nbytes // ALIGNED) * ALIGNED for past in cache]
        # Written to in whatever mode the next part of the film is pushed.
        with torch.inference_mode(False):
            block = torch.empty(sum(sizes), dtype=torch.uint8, device=home)
            self.places = [
                part[: past.nbytes].view(past.dtype).view(past.shape)
                for part, past in zip(block.split(sizes), cache, strict=True)
            ]
        release = pin(block)
        if release is not None:
            weakref.finalize(self, release)  # which keeps the block until it is done

    def store(self, cache: Sequence[Tensor]) -> list[Tensor]:
        """Copy a cache of the same shapes here; returns where it lies."""
        for place, past in zip(self.places, cache, strict=True):
            place.copy_(past.detach())
        return list(self.places)
