"""Decoding in little memory and exactly: what layers look back to lies on the disk meanwhile.

A block of latents goes through a stage of the decoder before the next stage, so that only that
stage's past is in memory, read from the disk before and written there after. The first stages are
small, and attention among them sees the whole picture: so they see it. Each layer of the last one,
`Decoder.fine`, sees one position around: it runs in tiles, one after another like stages, that
reach so far over what they make that it is right. Results are those of `DecodeStream` but for
rounding.

At the published widths, numbers for each pixel: the stages look back to 132, 264 and 1968, the last
of them of a tile's pixels only, and make 24, 48 and 12 of a latent.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .layers import Upsample
from .memory import DecodeStages, stages_memory
from .network import FRAME_CHANNELS, VideoVAE
from .past import Past
from .tiles import Side, Tiling, count_coded

BLOCK = 16  # latents that go through a tile before the next tile


class Spill:
    """Tensors one after another in a nameless file, which is gone with the process."""

    def __init__(self, folder: Path) -> None:
        self.file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self.kinds: list[tuple[torch.Size, torch.dtype]] = []

    def add(self, tensor: Tensor) -> None:
        """Raises OSError where the disk is full."""
        self.kinds.append((tensor.shape, tensor.dtype))
        self.file.write(_as_bytes(tensor.cpu().contiguous()))

    @contextlib.contextmanager
    def lend(self, last: bool) -> Iterator[list[Tensor]]:
        """All tensors in memory, and afterwards in the file what the list then has, if not last."""
        tensors = list(self.read())
        yield tensors
        self.clear()
        while tensors:
            tensor = tensors.pop(0)
            if not last:
                self.add(tensor)

    def read(self) -> Iterator[Tensor]:
        """All tensors in order, one by one."""
        self.file.seek(0)
        for shape, dtype in self.kinds:
            tensor = torch.empty(shape, dtype=dtype)
            if self.file.readinto(_as_bytes(tensor)) != tensor.nbytes:
                raise OSError("a file of tensors has become shorter")
            yield tensor

    def clear(self) -> None:
        self.kinds.clear()
        self.file.seek(0)
        self.file.truncate()


def _as_bytes(tensor: Tensor) -> memoryview:
    return tensor.flatten().view(torch.uint8).numpy().data


def reach(vae: VideoVAE) -> int:
    """Over how many latents around it `Decoder.fine` sees from a position."""
    decoder = vae.decoder
    fine = list(decoder.upsamples[decoder.split :])
    px, seen = 2 ** sum(isinstance(block, Upsample) for block in fine), 1  # the head's
    for block in fine:
        if isinstance(block, Upsample):
            px //= 2
        seen += px if isinstance(block, Upsample) else 2 * px
    return math.ceil(seen / vae.space_factor)


@dataclass
class Tile:
    """Rows and columns that are decoded, those that are kept of them, in latents, and its files."""

    decoded: tuple[slice, slice]
    kept: tuple[slice, slice]
    given: Spill
    past: Spill
    frames: Spill

    def cut(self, x: Tensor, scale: int) -> Tensor:
        """What the tile is given of x (..., h', w'), which has `scale` positions for a latent."""
        rows, columns = (slice(side.start * scale, side.stop * scale) for side in self.decoded)
        return x[..., rows, columns]

    def keep(self, frames: Tensor, scale: int) -> Tensor:
        """The part of its frames (B, 3, n, H, W) that is right."""
        rows, columns = (
            slice((kept.start - side.start) * scale, (kept.stop - side.start) * scale)
            for kept, side in zip(self.kept, self.decoded, strict=True)
        )
        return frames[..., rows, columns]

    def place(self, frames: Tensor, scale: int) -> Tensor:
        """Where in the picture's frames that part belongs."""
        rows, columns = (slice(side.start * scale, side.stop * scale) for side in self.kept)
        return frames[..., rows, columns]


def make_tiles(tiling: Tiling, size: tuple[int, int], folder: Path) -> list[Tile]:
    """The tiles of a picture of (h, w) latents: two share what they overlap by halves."""
    sides = []
    for side, length in zip((tiling.rows, tiling.columns), size, strict=True):
        spans = side.spans(length)
        cuts = [
            (before[1] + after[0]) // 2 for before, after in zip(spans, spans[1:], strict=False)
        ]
        bounds = zip([0, *cuts], [*cuts, length], strict=True)
        sides.append([(slice(*a), slice(*b)) for a, b in zip(spans, bounds, strict=True)])
    return [
        Tile((row, column), (own_row, own_column), Spill(folder), Spill(folder), Spill(folder))
        for row, own_row in sides[0]
        for column, own_column in sides[1]
    ]


@dataclass(frozen=True)
class Way:
    """How a picture is decoded: its tiles, and the bytes that takes of memory and of the disk."""

    tiling: Tiling
    memory: int
    disk: int


def find_way(vae: VideoVAE, size: tuple[int, int], itemsize: int, most: int) -> Way:
    """The way with the least to compute that takes `most` bytes of memory, or else the least."""
    overlap = 2 * reach(vae)
    height, width = size
    factor = vae.space_factor
    whole = stages_memory(vae, height * factor, width * factor, itemsize)
    ways = [
        _plan(vae, size, itemsize, whole, Tiling(row, column))
        for row in _sides(height, overlap)
        for column in _sides(width, overlap)
    ]
    most = max(most, min(way.memory for way in ways))
    fitting = [way for way in ways if way.memory <= most]
    return min(fitting, key=lambda way: count_coded(way.tiling, height, width))


def _sides(length: int, overlap: int) -> list[Side]:
    """Ways to cut a side of so many latents, each into more tiles than the last."""
    sides = [Side(length, 0)]
    for count in range(2, length):
        size = math.ceil((length + (count - 1) * overlap) / count)
        if size < 2 * overlap:
            break
        sides.append(Side(size, overlap))
    return sides


def _plan(
    vae: VideoVAE, size: tuple[int, int], itemsize: int, whole: DecodeStages, tiling: Tiling
) -> Way:
    """whole: what stages need of the untiled picture."""
    factor, (height, width) = vae.space_factor, size
    tile = min(tiling.rows.size, height) * factor, min(tiling.columns.size, width) * factor
    fine = stages_memory(vae, *tile, itemsize).fine
    stages = max(
        step.needed + made for step, made in zip(whole.coarse, whole.given[1:], strict=True)
    )
    coded, area = count_coded(tiling, height, width) * factor**2, height * width * factor**2
    frames = FRAME_CHANNELS * vae.time_factor * area * itemsize
    pasts = sum(step.cache for step in whole.coarse) + fine.cache * coded // (tile[0] * tile[1])
    given = sum(whole.given[1:-1]) + whole.given[-1] * coded // area
    return Way(tiling, max(stages, fine.needed), pasts + BLOCK * (given + frames))


def decode_on_disk(
    vae: VideoVAE,
    latents: Tensor,
    tiling: Tiling,
    folder: Path,
    convert: Callable[[Tensor], Tensor] = lambda latents: latents,
    tick: Callable[[], None] = lambda: None,
    block: int = BLOCK,
) -> Iterator[Tensor]:
    """The frames (B, 3, n, H, W) of latents (B, 16, F, h, w), of one latent at a time.

    convert: makes raw latents of some. tick: called between pieces of work; may raise to end it.
    block: how many latents go through a tile before the next tile. Raises OSError where the disk is
    full.
    """
    size = latents.shape[3], latents.shape[4]
    tiles, stages = make_tiles(tiling, size, folder), vae.decoder.stages
    pasts, between = ([Spill(folder) for _ in stages] for _ in range(2))
    blocks = latents.split(block, dim=2)

    def give(x: Tensor) -> None:
        for tile in tiles:
            tile.given.add(tile.cut(x, x.shape[3] // size[0]))

    for number, some in enumerate(blocks, 1):
        last = number == len(blocks)
        given: Iterator[Tensor] = map(vae.conv2, convert(some).split(1, dim=2))
        for stage, past, made in zip(stages, pasts, between, strict=True):
            with past.lend(last) as cache:
                for x in given:
                    tick()
                    put = give if stage is stages[-1] else made.add
                    put(vae.decoder.coarse(x, Past(cache), *stage))
            given = made.read()
        for made in between:
            made.clear()
        for tile in tiles:
            with tile.past.lend(last) as cache:
                _run_tile(vae, tile, cache, tick)
        yield from _join(tiles, size, vae.space_factor)


def _run_tile(vae: VideoVAE, tile: Tile, cache: list[Tensor], tick: Callable[[], None]) -> None:
    """A tile's frames of what it was given."""
    for x in tile.given.read():
        tick()
        tile.frames.add(tile.keep(vae.decoder.fine(x, Past(cache)), vae.space_factor))
    tile.given.clear()


def _join(tiles: list[Tile], size: tuple[int, int], scale: int) -> Iterator[Tensor]:
    """The frames that the tiles have made, of one latent after another."""
    for parts in zip(*(tile.frames.read() for tile in tiles), strict=True):
        batch, channels, count = parts[0].shape[:3]
        frames = parts[0].new_empty(batch, channels, count, size[0] * scale, size[1] * scale)
        for tile, part in zip(tiles, parts, strict=True):
            tile.place(frames, scale).copy_(part)
        yield frames
    for tile in tiles:
        tile.frames.clear()
