"""What a shared forward sends: bytes from sizes."""

from __future__ import annotations

from dataclasses import dataclass

from .degrees import Degrees
from .shards import Shards


@dataclass(frozen=True)
class ForwardSizes:
    """Sizes of a forward. places: tokens of a frame. patch: numbers that the head makes of a token.

    itemsize: bytes of a number in products and attention; the head's and the stream's are 4.
    """

    batch: int
    frames: int
    places: int
    dim: int
    blocks: int
    patch: int
    itemsize: int = 2


@dataclass(frozen=True)
class Sent:
    """Bytes that a rank sends to others in a forward: of heads, round the ring, at the end."""

    exchanged: int
    passed: int
    joined: int

    @property
    def total(self) -> int:
        return self.exchanged + self.passed + self.joined


def count_sent(sizes: ForwardSizes, degrees: Degrees, rank: int) -> Sent:
    """What a rank sends in one forward, without what it is given to begin with.

    In each block, of queries, keys, values and the attention's result all heads but its own, and
    keys and values to the next in the ring, as often as there are others. At the end its part of
    what the head makes, to every other rank.
    """
    groups = min(degrees.prompts, sizes.batch)
    shards = Shards(sizes.batch, sizes.frames, sizes.places, degrees.sequence, groups)
    prompt, turn, _ = degrees.place(rank)
    own = shards.samples(prompt)
    samples, parts = own.stop - own.start, degrees.heads
    part = samples * sizes.frames * shards.width * sizes.dim * sizes.itemsize
    exchanged = 4 * part // parts * (parts - 1)
    # What goes on from here began with the ranks before; the next one's own never comes here.
    sources = [(turn - step) % degrees.ring for step in range(degrees.ring - 1)]
    tokens = sizes.frames * sum(shards.filled(source * parts, parts) for source in sources)
    passed = 2 * samples * tokens * (sizes.dim // parts) * sizes.itemsize
    joined = shards.most * sizes.frames * shards.width * sizes.patch * 4 * (degrees.world - 1)
    return Sent(sizes.blocks * exchanged, sizes.blocks * passed, joined)
