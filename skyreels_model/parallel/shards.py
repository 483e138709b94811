"""Which tokens a rank has: some places of every frame, so that modulation stays per frame.

Cut along the sequence, a part would begin inside a frame, and its modulation would have to be
written out for every token. Cut along the places of a frame, every part has all frames:

    frame 0   a a b b c c        3 ranks, 6 places: rank 0 has a of both frames,
    frame 1   a a b b c c        rank 1 has b, rank 2 has c.

So shift, scale and gate (B, F, D) fit a part as they fit the whole, attention that sees only
earlier frames loads all ranks alike, and frames need not divide by ranks. Places that do not divide
are filled up with zeros at the last ranks. No attention sees these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shards:
    """The tokens of a batch, (batch, frames * places, D), cut for ranks.

    parts: of each frame. groups: of the batch, which holds prompts.
    """

    batch: int
    frames: int
    places: int
    parts: int
    groups: int = 1

    @property
    def width(self) -> int:
        """Places that every part has, the filled-up ones included."""
        return -(-self.places // self.parts)

    @property
    def most(self) -> int:
        """Samples of the batch that the largest group has."""
        return -(-self.batch // self.groups)

    def samples(self, group: int) -> slice:
        """The samples of the batch that a group has."""
        return slice(min(self.batch, group * self.most), min(self.batch, (group + 1) * self.most))

    def filled(self, first: int, count: int = 1) -> int:
        """How many of the places of `count` parts, from the first on, are tokens."""
        start, end = (min(self.places, n * self.width) for n in (first, first + count))
        return end - start

    def cut(self, x: Tensor, part: int) -> Tensor:
        """A part's tokens of x (B, frames * places, …) -> (B, frames * width, …), or x itself."""
        if self.parts == 1:
            return x
        framed = x.unflatten(1, (self.frames, self.places))
        out = x.new_zeros((x.shape[0], self.frames, self.width, *x.shape[2:]))
        start, count = part * self.width, self.filled(part)
        out[:, :, :count] = framed[:, :, start : start + count]
        return out.flatten(1, 2)

    def join(self, parts: Tensor) -> Tensor:
        """All parts, (groups * parts, most, frames * width, D) -> (batch, frames * places, D)."""
        if len(parts) == 1:
            return parts[0]
        split = parts.unflatten(0, (self.groups, self.parts)).unflatten(3, (self.frames, -1))
        # (groups, parts, most, frames, width, D) -> (groups, most, frames, parts, width, D)
        placed = split.permute(0, 2, 3, 1, 4, 5).flatten(3, 4)[:, :, :, : self.places]
        return placed.flatten(2, 3).flatten(0, 1)[: self.batch]

    def fill_batch(self, x: Tensor) -> Tensor:
        """x (n, …) of a group with fewer samples, with as many as the largest has."""
        absent = self.most - x.shape[0]
        return x if not absent else torch.cat([x, x.new_zeros((absent, *x.shape[1:]))])
