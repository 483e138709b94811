"""What the causal layers of a stream look back to."""

from __future__ import annotations

import torch
from torch import Tensor


class Past:
    """What a step looks back to: each causal layer visits its own slot of the cache, in order.

    An empty cache marks the stream's first step. Slots are replaced one by one, so that the old
    and the new cache are never held together; tensors in the cache are never written to.
    Set `slot` back to where it was for layers that take a step in pieces.
    """

    def __init__(self, cache: list[Tensor]) -> None:
        self.first = not cache
        self.slot = 0
        self._cache = cache

    def store(self, past: Tensor) -> None:
        """Fill this layer's slot and move on to the next layer's."""
        if self.first:
            self._cache.append(past)
        else:
            self._cache[self.slot] = past
        self.slot += 1

    def prepend(self, x: Tensor, frames: int) -> Tensor:
        """Put the layer's last `frames` input frames (zeros at first) in front of x.

        x (B, C, T, H, W) -> (B, C, frames + T, H, W)
        """
        return torch.cat([self._recall(x, frames), x], dim=2)

    def make_room(self, x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """What `prepend` returns, with nothing yet in x's place, and a view of that place."""
        batch, channels, length, height, width = x.shape
        joined = x.new_empty(batch, channels, frames + length, height, width)
        joined[:, :, :frames] = self._recall(x, frames)
        return joined, joined[:, :, frames:]

    def _recall(self, x: Tensor, frames: int) -> Tensor:
        return no_past(x, frames) if self.first else self._cache[self.slot]

    def keep(self, x: Tensor, frames: int) -> None:
        """Store the last `frames` of x, the layer's input with its past in front."""
        past = x[:, :, -frames:]
        if not self.first:
            self._cache[self.slot] = past  # the old past goes before the new one is made
        # A view would keep the whole step alive until the next one.
        self.store(past.clone())

    def extend(self, x: Tensor, frames: int) -> Tensor:
        """`prepend` and `keep` in one."""
        x = self.prepend(x, frames)
        self.keep(x, frames)
        return x


def no_past(x: Tensor, frames: int) -> Tensor:
    """Zeros in the place of frames before the first: (B, C, frames, H, W)."""
    batch, channels, _, height, width = x.shape
    return x.new_zeros(batch, channels, frames, height, width)
