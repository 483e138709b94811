"""The timestep matrix of an asynchronous film of any length, row by row, in closed form."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class StairRow:
    """One model call: the latents [start, stop) that it is shown, and of each (F,) the following.

    index: its step, 0 = not yet started, N + 1 = done or given. update: whether the solver moves
    it. fresh: whether it is replaced by noise before.
    """

    start: int
    stop: int
    index: Tensor
    update: Tensor
    fresh: Tensor


@dataclass(frozen=True)
class Staircase:
    """Blocks of latents that start one after the other, and the view that follows them.

    With 5 blocks, 4 steps, a lag of 2 and 3 blocks in view (a dot waits, a dash is done, what is
    not in view is left out):

        row            0  1  2  3  4  5  6  7  8  9 10 11
        block 0        1  2  3  4  -  -
        block 1        .  .  1  2  3  4  -  -
        block 2        .  .  .  .  1  2  3  4  -  -  -  -
        block 3                          1  2  3  4  -  -
        block 4                                1  2  3  4

    A stair is a block's place among those that are made: those given at the start, and those that
    are all pictures, have none. The block on stair k is in row r at step r + 1 - lag * k, held
    between 0 and steps + 1; so the newest that moves is on stair r // lag, the oldest on stair
    (r - steps) // lag + 1, and the last of n stairs is done after steps + (n - 1) * lag rows. The
    view ends after the newest block, or after what is given not far ahead, and holds `base` blocks.

    frames: latents of the film. base: blocks in view at once. lag: rows that a block starts behind
    the one before it. given: latents given at the start. pictures: latents given as pictures; they
    are regenerated, while all else waits, once their neighbours are done. end: latents shown,
    clean, after the film's last; `within` of them take room in the view. What lies ahead and is
    given is shown as early as half of the room that the moving blocks leave allows, so that they
    can move towards it. Without pictures and end, equal to `timestep_matrix` with
    `base_num_frames`, without its memory.
    """

    frames: int
    block_size: int
    base: int
    steps: int
    lag: int
    given: int
    pictures: tuple[int, ...] = ()
    end: int = 0
    within: int = 0

    @property
    def blocks(self) -> int:
        return -(-self.frames // self.block_size)

    @property
    def ready(self) -> int:
        """Blocks at the start of which all is given."""
        return self.given // self.block_size

    @cached_property
    def _pictured(self) -> list[int]:
        """Blocks in which there is nothing but pictures to make."""
        found, pictures = [], set(self.pictures)
        for block in self._picture_blocks:
            begin = max(block * self.block_size, self.given)
            stop = min((block + 1) * self.block_size, self.frames)
            if pictures.issuperset(range(begin, stop)):
                found.append(block)
        return found

    @property
    def _stairs(self) -> int:
        """Blocks that take part in the staircase."""
        return self.blocks - self.ready - len(self._pictured)

    @property
    def _stair_rows(self) -> int:
        return self.steps + (self._stairs - 1) * self.lag if self._stairs else 0

    @cached_property
    def _pauses(self) -> list[tuple[int, tuple[int, ...]]]:
        """Rows of the staircase before which pictures are regenerated, and those pictures."""
        found: dict[int, tuple[int, ...]] = {}
        pictures = set(self.pictures)
        for latent in sorted(pictures):
            later = next(i for i in range(latent + 1, self.frames + 1) if i not in pictures)
            row = self._stair_rows
            if later < self.frames:
                row = self.lag * self._stair(later // self.block_size) + self.steps
            found[row] = (*found.get(row, ()), latent)
        return sorted(found.items())

    @cached_property
    def _pause_rows(self) -> list[int]:
        """The row with which each pause begins."""
        return [stair + self.steps * k for k, (stair, _) in enumerate(self._pauses)]

    @cached_property
    def _picture_blocks(self) -> list[int]:
        """The blocks that pictures lie in."""
        return sorted({latent // self.block_size for latent in self.pictures})

    @property
    def rows(self) -> int:
        return self._stair_rows + self.steps * len(self._pauses)

    def row(self, row: int) -> StairRow:
        """A row by its number; it costs the same wherever in the film it lies."""
        stair_row, past, step = self._place(row)
        return self._climb(stair_row, past) if step is None else self._pause(past, step)

    def _place(self, row: int) -> tuple[int, int, int | None]:
        """Where a row lies: its row of the staircase, the pauses before it, its step in a pause."""
        past = bisect.bisect_right(self._pause_rows, row)
        if past and row < self._pause_rows[past - 1] + self.steps:
            return self._pauses[past - 1][0], past - 1, row - self._pause_rows[past - 1]
        return row - self.steps * past, past, None

    def table(self, rows: int, latents: int) -> tuple[Tensor, Tensor, Tensor]:
        """The first rows, at most so many, that show none but the first latents; at least one.

        The index, whether a latent is shown at all, and whether it moves, (R, F) each: all rows at
        once, for whoever draws them.
        """
        places = [self._place(row) for row in range(min(rows, self.rows))]
        views = [self._view(stair_row, past) for stair_row, past, _ in places]
        wide = next((i for i, (start, stop) in enumerate(views) if start and stop > latents), None)
        places, views = places[:wide], views[:wide]
        start, stop = torch.tensor(views).T.contiguous()[..., None]  # (R, 1)
        columns = torch.arange(int(stop.max()))
        stairs = torch.tensor([stair_row for stair_row, _, _ in places])[:, None]
        index = self._index(stairs, columns)
        moves = (index >= 1) & (index <= self.steps)
        for row, (_, past, step) in enumerate(places):
            if step is not None:
                moves[row] = False
                moves[row, list(self._pauses[past][1])] = True
                index[row, moves[row]] = step + 1
        shown = (columns >= start) & (columns < stop)
        return index, shown, moves & shown

    @cached_property
    def widest(self) -> int:
        """The most latents in view at once."""
        last = max(self._stair_rows - 1, 0)
        looked = {(0, 0), (last, len(self._pauses))}
        # The view grows while a picture waits in it, until it is regenerated.
        for past, (row, latents) in enumerate(self._pauses):
            first = row - 2 * self.steps - self.lag * (len(latents) + 2)
            looked |= {(waiting, past) for waiting in self._turns(max(first, 0), row)}
        # And where what lies after the film is shown with all of the view before it.
        first = last - self.steps - self.lag * (self.base + self.within)
        looked |= {(row, len(self._pauses)) for row in self._turns(max(first, 0), last)}
        views = (self._view(row, past) for row, past in looked)
        return max(stop - start for start, stop in views)

    def _turns(self, first: int, last: int) -> set[int]:
        """The rows [first, last] of the staircase at which the view may change, and the first.

        A block begins in every row k * lag, and one has ended before every row steps + k * lag.
        """
        begins = range(first + -first % self.lag, last + 1, self.lag)
        ends = range(first + (self.steps - first) % self.lag, last + 1, self.lag)
        return {first, *begins, *ends}

    def __iter__(self) -> Iterator[StairRow]:
        return map(self.row, range(self.rows))

    def _climb(self, stair_row: int, past: int) -> StairRow:
        """A row in which the staircase moves, after `past` pauses."""
        start, stop = self._view(stair_row, past)
        index = self._index(stair_row, torch.arange(start, stop))
        update = (index >= 1) & (index <= self.steps)
        return StairRow(start, stop, index, update, torch.zeros_like(update))

    def _pause(self, pause: int, step: int) -> StairRow:
        """A row in which only a pause's pictures move."""
        stair_row, pictures = self._pauses[pause]
        start, stop = self._view(stair_row, pause)
        index = self._index(stair_row, torch.arange(start, stop))
        update = torch.zeros(stop - start, dtype=torch.bool)
        update[[latent - start for latent in pictures]] = True
        index[update] = step + 1
        return StairRow(start, stop, index, update, update & (step == 0))

    def _view(self, stair_row: int, past: int) -> tuple[int, int]:
        """The latents shown before a row of the staircase, after `past` pauses."""
        if not self._stairs:
            return 0, self.frames + self.end
        newest = min(stair_row // self.lag, self._stairs - 1)
        oldest = max(0, -(-(stair_row - self.steps + 1) // self.lag))
        oldest = min(oldest, newest)
        stop = self._block(newest) + 1
        room = max(self.base - -(-self.steps // self.lag), 0)
        limit = self._block(oldest) + self.base - (room - room // 2)
        # The furthest picture that the room ahead reaches.
        reached = bisect.bisect_left(self._picture_blocks, limit)
        ahead = self._picture_blocks[reached - 1] + 1 if reached else 0
        stop = max(self.base, stop, ahead)
        entered = newest == self._stairs - 1
        stop = self.blocks if entered else min(stop, self.blocks)
        start = max(stop - self.base, 0) * self.block_size
        shown = 0
        if self.end and (entered or self.frames + self.within <= limit * self.block_size):
            stop, shown = self.blocks, self.end
            start = max(start, self.frames + self.within - self.base * self.block_size)
        # What still moves, or waits to be regenerated between its neighbours, stays in view.
        start = min(start, self._block(oldest) * self.block_size)
        if past < len(self._pauses):
            start = min(start, self._pauses[past][1][0] - 1)
        return max(start, 0), min(stop * self.block_size, self.frames) + shown

    def _index(self, stair_row: int | Tensor, latents: Tensor) -> Tensor:
        """Step of each latent (F,) in a row of the staircase, or in rows (R, 1)."""
        blocks = latents // self.block_size
        stairs = blocks - self.ready
        if self._pictured:
            stairs -= torch.bucketize(blocks, torch.tensor(self._pictured))
        index = (stair_row + 1 - self.lag * stairs).clamp(0, self.steps + 1)
        given = (latents < self.given) | (latents >= self.frames)
        if self.pictures:
            given |= torch.isin(latents, torch.tensor(self.pictures))
        return torch.where(given, self.steps + 1, index)

    def _stair(self, block: int) -> int:
        """Which step of the staircase a block is."""
        return block - self.ready - bisect.bisect_left(self._pictured, block)

    def _block(self, stair: int) -> int:
        """The block that is a step of the staircase."""
        block = self.ready + stair
        for pictured in self._pictured:
            block += pictured <= block
        return block
