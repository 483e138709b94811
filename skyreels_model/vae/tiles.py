"""The VAE in spatial tiles: for pictures whose single step is too large for the device.

Each tile is a causal stream of its own. A block of steps goes through all tiles, then the next
block: one pass over time, frames in order, in constant memory. Between blocks the tiles' caches lie
where there is room for them, normally in the machine's memory. At 832 x 480 in bfloat16 and tiles
of 256 px they are 3.7 GB (1.9 GB untiled, and the overlaps), moved there and back once a block. The
other way, tile by tile over the whole film, would hold and move no cache but the running tile's,
and every frame of the film until its last tile: 6.9 GB a minute in float32, without end.
Neighbours overlap and are blended with cosine ramps. A tile does not see beyond its border, so the
result is near to untiled, not equal: how near is in `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..lack import lacks_memory
from ..rules import refusal
from .network import FRAME_CHANNELS, DecodeStream, EncodeStream, VideoVAE
from .shelf import Pin, Shelf, leave_unpinned

Spans = list[tuple[int, int]]
SMALLEST = 8  # latents
OVERLAP = 8  # latents, or a quarter of a tile where that is less


@dataclass(frozen=True)
class Side:
    """Length and least overlap of tiles along one side of the picture, in latents (8 px each)."""

    size: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.size:
            nearest = min(max(self.overlap, 0), max(self.size - 1, 0))
            rule = f"0 or more latents, and fewer than a tile's {self.size}"
            raise refusal("overlap", self.overlap, rule, nearest)

    @classmethod
    def of(cls, size: int) -> Side:
        """Tiles of `size` latents with the usual overlap."""
        return cls(size, min(size // 4, OVERLAP))

    @classmethod
    def parts(cls, length: int, count: int) -> Side:
        """`count` tiles along so many latents, no longer than they need to be."""
        overlap = cls.of(math.ceil(length / count)).overlap if count > 1 else 0
        return cls(math.ceil((length + (count - 1) * overlap) / count), overlap)

    def halve(self) -> Side:
        return Side.of(max(self.size // 2, SMALLEST))

    def spans(self, length: int) -> Spans:
        """Where the tiles of a side begin and end: the fewest that reach, evenly spread."""
        if self.size >= length:
            return [(0, length)]
        count = math.ceil((length - self.overlap) / (self.size - self.overlap))
        starts = [round(i * (length - self.size) / (count - 1)) for i in range(count)]
        return [(start, start + self.size) for start in starts]


@dataclass(frozen=True)
class Tiling:
    """How a picture is cut: tiles of rows.size x columns.size latents."""

    rows: Side
    columns: Side

    @classmethod
    def square(cls, size: int) -> Tiling:
        return cls(Side.of(size), Side.of(size))

    @property
    def smallest(self) -> bool:
        return max(self.rows.size, self.columns.size) <= SMALLEST

    def halve(self) -> Tiling:
        """Half the longer side."""
        if self.rows.size > self.columns.size:
            return Tiling(self.rows.halve(), self.columns)
        return Tiling(self.rows, self.columns.halve())


def tilings(height: int, width: int) -> list[Tiling]:
    """Ways to cut height x width latents: those with the full overlap first, few tiles to many.

    Of as many tiles the ones that code the fewest positions come first.
    """
    ways = []
    for rows in range(1, max(height // SMALLEST, 1) + 1):
        for columns in range(1, max(width // SMALLEST, 1) + 1):
            tiling = Tiling(Side.parts(height, rows), Side.parts(width, columns))
            cut = [
                side.overlap
                for side, count in ((tiling.rows, rows), (tiling.columns, columns))
                if count > 1
            ]
            if cut:
                narrow = min(cut) < OVERLAP
                ways.append((narrow, rows * columns, count_coded(tiling, height, width), tiling))
    return [way[-1] for way in sorted(ways, key=lambda way: way[:3])]


def count_coded(tiling: Tiling, height: int, width: int) -> int:
    """Positions of height x width latents that are coded, those of overlaps twice or more."""
    down, across = (
        sum(stop - start for start, stop in side.spans(length))
        for side, length in ((tiling.rows, height), (tiling.columns, width))
    )
    return down * across


def ramps(spans: Spans, scale: int) -> list[Tensor]:
    """Each tile's share of the result along one side; at each position all shares add up to 1.

    `scale` positions of the result for each of the spans'. Tiles take over from each other in the
    middle half of their overlap: the outermost quarter, which the false border disturbs most, has
    no share. On a trained encoder that halves the error.
    """
    shares = torch.zeros(len(spans), spans[-1][1] * scale, dtype=torch.float64)
    for i, (start, stop) in enumerate(spans):
        position = torch.arange((stop - start) * scale, dtype=torch.float64) + 0.5
        share = torch.ones_like(position)
        if i > 0:
            share *= _ramp(position, (spans[i - 1][1] - start) * scale)
        if i + 1 < len(spans):
            share *= _ramp(position.flip(0), (stop - spans[i + 1][0]) * scale)
        shares[i, start * scale : stop * scale] = share
    shares = (shares / shares.sum(dim=0)).float()
    return [share[a * scale : b * scale] for share, (a, b) in zip(shares, spans, strict=True)]


def _ramp(position: Tensor, overlap: int) -> Tensor:
    """A half cosine from 0 to 1 over the middle half of an overlap that begins at position 0."""
    if not overlap:
        return torch.ones_like(position)
    return 0.5 - 0.5 * torch.cos((2 * position / overlap - 0.5).clamp(0, 1) * math.pi)


@dataclass
class Tile:
    """A tile's place in the picture (rows, then columns, in latents), its shares, and its state."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    shares: Tensor  # (rows, columns) of the result
    cache: list[Tensor] = field(default_factory=list)
    shelf: Shelf | None = None  # where the cache lies, if the steps are made elsewhere

    def cut(self, x: Tensor, scale: int) -> Tensor:
        """The tile's part of x (..., H, W), which has `scale` positions for each latent."""
        top, bottom = (edge * scale for edge in self.rows)
        left, right = (edge * scale for edge in self.columns)
        return x[..., top:bottom, left:right]

    def split(self, tiling: Tiling, scale: int) -> list[Tile]:
        """The same place in smaller tiles, which go on from where this one stands."""
        top, left = self.rows[0], self.columns[0]
        height, width = self.rows[1] - top, self.columns[1] - left
        parts = make_tiles(tiling, height, width, scale)
        for part in parts:
            part.shares = part.shares * part.cut(self.shares, scale)
            # A layer's past has a whole number of positions for each latent.
            part.cache = [part.cut(past, past.shape[3] // height).clone() for past in self.cache]
            part.rows = (top + part.rows[0], top + part.rows[1])
            part.columns = (left + part.columns[0], left + part.columns[1])
        return parts


def make_tiles(tiling: Tiling, height: int, width: int, scale: int) -> list[Tile]:
    """The tiles of a picture of height x width latents, row by row, at a stream's start."""
    rows, columns = tiling.rows.spans(height), tiling.columns.spans(width)
    return [
        Tile(row, column, down[:, None] * across)
        for row, down in zip(rows, ramps(rows, scale), strict=True)
        for column, across in zip(columns, ramps(columns, scale), strict=True)
    ]


class TiledStream:
    """What both directions share: a picture of height x width latents in tiles.

    device: where a tile's steps are made; None is the input's device. Input, results and caches
    stay on the input's; `pin` lets a device copy from and to a cache there by itself (`shelf`). A
    tile for which the device's memory does not suffice is split, and so are all others when it is
    their turn; `on_split` is told how, and the same step goes on. Where tiles are the smallest
    already, the error is raised. `lacks_memory` knows such an error.
    """

    def __init__(
        self,
        vae: VideoVAE,
        tiling: Tiling,
        size: tuple[int, int],
        device: torch.device | None = None,
        on_split: Callable[[Tiling], None] = lambda tiling: None,
        lacks_memory: Callable[[Exception], bool] = lacks_memory,
        pin: Pin = leave_unpinned,
    ) -> None:
        self.vae, self.tiling, self.size, self.pin = vae, tiling, size, pin
        self.device, self.on_split, self.lacks_memory = device, on_split, lacks_memory
        self.tiles = make_tiles(tiling, *size, self.scales()[1])

    def scales(self) -> tuple[int, int]:
        """Positions of the input and of the result along a latent's side."""
        raise NotImplementedError

    def stream(self, cache: list[Tensor]) -> DecodeStream | EncodeStream:
        """A tile's own stream."""
        raise NotImplementedError

    def result_shape(self, x: Tensor) -> tuple[int, int]:
        """Channels and frames of what becomes of x."""
        raise NotImplementedError

    def push(self, x: Tensor) -> Tensor:
        """The next part of the film, as the untiled stream's `push`, in float32."""
        before, after = self.scales()
        given, whole = tuple(x.shape[3:]), tuple(side * before for side in self.size)
        if given != whole:
            raise refusal("(height, width)", given, "what the tiles are cut for", whole)
        first = self.tiles[0]
        self.stream(first.cache).check(first.cut(x, before))
        shape = (x.shape[0], *self.result_shape(x), *(side * after for side in self.size))
        result = torch.zeros(shape, device=x.device)
        done: list[Tile] = []
        waiting = list(self.tiles)
        while waiting:
            tile = waiting.pop(0)
            if self._too_large(tile) or not self._run(tile, x, result):
                waiting[:0] = tile.split(self.tiling, after)
            else:
                done.append(tile)
        self.tiles = done
        return result

    def _too_large(self, tile: Tile) -> bool:
        height, width = (stop - start for start, stop in (tile.rows, tile.columns))
        return height > self.tiling.rows.size or width > self.tiling.columns.size

    def _run(self, tile: Tile, x: Tensor, result: Tensor) -> bool:
        """Add the tile's share to the result; False where it is too large, all left as it was."""
        before, after = self.scales()
        try:
            part, cache = self._code(tile.cache, tile.cut(x, before))
        except Exception as error:
            if self.tiling.smallest or not self.lacks_memory(error):
                raise
            cache = []
        # Outside of the except block, which would keep the failed stream's tensors alive.
        if not cache:
            self.tiling = self.tiling.halve()
            self.on_split(self.tiling)
            return False
        self._keep(tile, cache, x.device)
        tile.cut(result, after).addcmul_(part, tile.shares.to(part))
        return True

    def _keep(self, tile: Tile, cache: list[Tensor], home: torch.device) -> None:
        """Put a tile's cache where the input is."""
        if cache[0].device == home:
            tile.cache = cache
            return
        if tile.shelf is None:
            tile.shelf = Shelf(cache, home, self.pin)
        tile.cache = tile.shelf.store(cache)

    def _code(self, cache: list[Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """A tile's part of x -> its part of the result where x is, and its cache after it."""
        device = self.device or x.device
        stream = self.stream([past.to(device) for past in cache])
        parts = [
            stream.push(step.to(device)).to(x.device, torch.float32) for step in stream.steps(x)
        ]
        return torch.cat(parts, dim=2), stream.cache


class TiledDecodeStream(TiledStream):
    """`DecodeStream` in tiles."""

    def scales(self) -> tuple[int, int]:
        return 1, self.vae.space_factor

    def stream(self, cache: list[Tensor]) -> DecodeStream:
        return self.vae.decode_stream(cache)

    def result_shape(self, x: Tensor) -> tuple[int, int]:
        first = 0 if self.tiles[0].cache else self.vae.time_factor - 1
        return FRAME_CHANNELS, x.shape[2] * self.vae.time_factor - first


class TiledEncodeStream(TiledStream):
    """`EncodeStream` in tiles."""

    def scales(self) -> tuple[int, int]:
        return self.vae.space_factor, 1

    def stream(self, cache: list[Tensor]) -> EncodeStream:
        return self.vae.encode_stream(cache)

    def result_shape(self, x: Tensor) -> tuple[int, int]:
        first = 0 if self.tiles[0].cache else self.vae.time_factor - 1
        return self.vae.z_dim, (x.shape[2] + first) // self.vae.time_factor
