"""The timestep matrix of a window: a row for each model call, a column for each latent frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

PIECE = 4096  # rows that are looked at together


@dataclass(frozen=True)
class TimestepMatrix:
    """One row per model call, one column per latent frame.

    timesteps: (R, F) int64, 0 where a frame is done or given. index: (R, F) int64, 0 = not yet
    started, k = in its k-th of N steps, N + 1 = done. update: (R, F) bool, the frames which the
    solver moves after the row. fresh: (R, F) bool, the frames that are replaced by noise before it.
    windows: per row the [start, end) of frames the model is shown.
    """

    timesteps: Tensor
    index: Tensor
    update: Tensor
    fresh: Tensor
    windows: list[tuple[int, int]]

    @property
    def rows(self) -> int:
        return len(self.windows)


def timestep_matrix(
    num_frames: int,
    timesteps: Tensor,
    base_num_frames: int,
    ar_step: int = 0,
    num_ready: int = 0,
    block_size: int = 1,
) -> TimestepMatrix:
    """Noise levels of a diffusion-forcing run.

    num_frames: latent frames F. timesteps: (N,) of the flow schedule. base_num_frames: latent
    frames the model is shown at once (whole blocks of it). ar_step: how many steps a block lags
    behind its predecessor; 0 is synchronous. num_ready: frames given at the start. block_size:
    frames that share a noise level.

    Source: SkyworkAI/SkyReels-V2, `generate_timestep_matrix`. Where that floors `num_frames` and
    `num_ready` to whole blocks (dropping frames, ignoring a prefix), this raises ValueError.
    """
    steps = len(timesteps)
    _check_matrix(num_frames, base_num_frames, ar_step, num_ready, block_size, steps)
    blocks, base, ready = (n // block_size for n in (num_frames, base_num_frames, num_ready))
    lag = min(ar_step, steps)
    time = torch.arange(lag * (blocks - ready - 1) + steps)  # (R,)
    stairs = torch.arange(num_frames) // block_size - ready  # (F,)
    index = _steps_at(time, stairs, lag, steps)
    index[:, :num_ready] = steps + 1
    update = (index >= 1) & (index <= steps)
    fresh = torch.zeros_like(update)
    fresh[0, num_ready:] = True
    # The view ends after the newest block that moves; given ones beyond it hold it where it is.
    newest = [ready + int(row) // lag if lag else blocks - 1 for row in time]
    ends = [base if ready > base else min(max(block + 1, base), blocks) for block in newest]
    windows = [(max(end - base, 0) * block_size, end * block_size) for end in ends]
    return TimestepMatrix(levels(timesteps)[index], index, update, fresh, windows)


def window_matrix(
    num_frames: int,
    timesteps: Tensor,
    ar_step: int = 0,
    block_size: int = 1,
    num_given: int = 0,
    pictures: Sequence[int] = (),
    end: int = 0,
) -> TimestepMatrix:
    """All of `window_rows` at once: rows times frames of memory."""
    rows = window_rows(num_frames, timesteps, ar_step, block_size, num_given, pictures, end)
    return rows.part(0, rows.count)


def window_rows(
    num_frames: int,
    timesteps: Tensor,
    ar_step: int = 0,
    block_size: int = 1,
    num_given: int = 0,
    pictures: Sequence[int] = (),
    end: int = 0,
) -> WindowRows:
    """Noise levels of one window of a film, for any length, block size and given frames.

    num_given: frames given at its start, a part of a block, too. pictures: places of further
    frames that are given as single pictures; when all others are done, these are regenerated from
    noise, so that the film moves through them. end: frames shown, clean, after the window's own
    `num_frames`. The last block may be shorter than the others. No row moves nothing.
    Where all lengths are whole blocks and nothing but whole blocks is given, it is
    `timestep_matrix`. Raises ValueError where nothing is left to make.
    """
    if block_size >= 1:
        whole, ready = (
            n * block_size for n in (-(-num_frames // block_size), num_given // block_size)
        )
    else:
        whole = ready = 0
    _check_matrix(whole, whole, ar_step, ready, block_size, len(timesteps))
    lag = min(ar_step, len(timesteps))
    return WindowRows(num_frames, timesteps, lag, block_size, num_given, tuple(pictures), end)


@dataclass(frozen=True, eq=False)
class WindowRows:
    """The rows of one window in closed form: counted, and made in parts, without the others.

    Block b starts `lag` rows after block b - 1 and then takes one step a row. With a lag of 2 and
    4 steps (a dot waits, a dash is done):

        row            0  1  2  3  4  5  6  7
        block 0        1  2  3  4  -  -  -  -
        block 1        .  .  1  2  3  4  -  -
        block 2        .  .  .  .  1  2  3  4

    so that block b is in row r at step r + 1 - lag * b, held between 0 and steps + 1. Blocks that
    are given count no more: b counts from the first that is not. Where all of a block is given as
    pictures, the rows in which nothing else moves are left out. Pictures take their steps last.
    """

    num_frames: int
    timesteps: Tensor
    lag: int
    block_size: int
    num_given: int
    pictures: tuple[int, ...]
    end: int

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    @property
    def shown(self) -> int:
        """Frames that the model is shown in every row."""
        return self.num_frames + self.end

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self._plain_rows + (self.steps if self.pictures else 0)

    @property
    def _plain_rows(self) -> int:
        """Rows before the pictures are regenerated."""
        number, begin, stop = self._stretches[-1] if self._stretches else (0, 0, 0)
        return number + stop - begin

    @cached_property
    def _stretches(self) -> list[tuple[int, int, int]]:
        """Stretches in which something moves: number of the first row, and its place [begin, stop)
        among the rows as if nothing were left out.
        """
        given = {*range(self.num_given), *self.pictures}
        ready, steps = self.num_given // self.block_size, self.steps
        found: list[tuple[int, int, int]] = []
        for first in range(ready * self.block_size, self.num_frames, self.block_size):
            frames = range(first, min(first + self.block_size, self.num_frames))
            if given.issuperset(frames):
                continue
            start = self.lag * (first // self.block_size - ready)
            number, begin, stop = found[-1] if found else (0, start, start)
            if start > stop:
                found.append((number + stop - begin, start, start + steps))
            else:
                found[-1:] = [(number, begin, start + steps)]
        return found

    def part(self, begin: int, stop: int) -> TimestepMatrix:
        """The rows [begin, stop) of the matrix, (R, F); those beyond the last are left out."""
        done = self.steps + 1
        rows = torch.arange(begin, min(stop, self.count))
        plain = rows[rows < self._plain_rows]
        last = rows[rows >= self._plain_rows]
        given = torch.zeros(self.shown, dtype=torch.bool)
        given[: self.num_given] = given[self.num_frames :] = True
        given[list(self.pictures)] = True
        stairs = torch.arange(self.shown) // self.block_size - self.num_given // self.block_size
        index = _steps_at(self._unskipped(plain), stairs, self.lag, self.steps)
        index[:, given] = done
        pictured = torch.full((len(last), self.shown), done)
        pictured[:, list(self.pictures)] = (last - self._plain_rows + 1)[:, None]
        index = torch.cat([index, pictured])
        update = (index >= 1) & (index <= self.steps)
        fresh = torch.zeros_like(update)
        fresh[: len(plain)] = ~given & (plain == 0)[:, None]
        fresh[len(plain) :] = pictured == 1
        windows = [(0, self.shown)] * len(rows)
        return TimestepMatrix(levels(self.timesteps)[index], index, update, fresh, windows)

    def count_hidden(self, ahead: int) -> int:
        """Over all rows, the frames that `count_visible` leaves out."""
        given = [self.num_given - 1, *self.pictures, *([self.shown - 1] if self.end else [])]
        ready = self.num_given // self.block_size
        # A frame is hidden until the one `ahead` before it begins.
        leaders = range(max(given) + 1, self.num_frames - ahead)
        return sum(self._rows_before(self.lag * (f // self.block_size - ready)) for f in leaders)

    def count_computed(self, ahead: int | None, every: int) -> int:
        """Over all rows, the frames that are computed.

        Frames at rest are computed in the row after that in which they come to it, and in each
        number that `every` divides. ahead: as in `count_visible`; None shows all frames.
        """
        computed, before = 0, None
        for begin in range(0, self.count, PIECE):
            index = self.part(begin, begin + PIECE).index
            resting = index > self.steps
            known = torch.cat([resting[:1] if before is None else before, resting[:-1]]) & resting
            known[(begin + torch.arange(len(index))) % every == 0] = False
            visible = torch.full((len(index),), self.shown)
            if ahead is not None:
                # The last that does not wait, counted from the end.
                waiting = (index == 0).flip(1).long().cumprod(1).sum(1)
                visible = (self.shown - waiting + ahead).clamp(max=self.shown)
            seen = torch.arange(self.shown) < visible[:, None]
            computed += int((seen & ~known).sum())
            before = resting[-1:]
        return computed

    def _rows_before(self, place: int) -> int:
        """How many rows come before a place among the rows as if nothing were left out."""
        return sum(min(max(place - begin, 0), stop - begin) for _, begin, stop in self._stretches)

    def _unskipped(self, rows: Tensor) -> Tensor:
        """Rows (R,) by their place as if nothing were left out, (R,)."""
        if not len(rows):
            return rows
        first, begin, _ = torch.tensor(self._stretches).T.contiguous()
        stretch = torch.bucketize(rows, first, right=True) - 1
        return rows + (begin - first)[stretch]


def _steps_at(rows: Tensor, stairs: Tensor, lag: int, steps: int) -> Tensor:
    """Step numbers of frames (F,) on these stairs in these rows (R,), (R, F)."""
    return (rows[:, None] + 1 - lag * stairs).clamp(0, steps + 1)


def count_visible(index: Tensor, ahead: int) -> int:
    """How many frames of a row a model needs that is shown none that wait, after all others.

    index (F,): 0 where a frame waits. Those are seen that come before one that does not wait, and
    the first `ahead` of the others.
    """
    at_work = index.nonzero()
    return min(int(at_work[-1]) + 1 + ahead, len(index)) if len(at_work) else len(index)


def levels(timesteps: Tensor) -> Tensor:
    """Timestep by step number: not yet started (as the first step), N steps, done. (N + 2,)"""
    return torch.cat([timesteps[:1], timesteps, timesteps.new_tensor([0])])


def _check_matrix(
    num_frames: int, base: int, ar_step: int, num_ready: int, block_size: int, steps: int
) -> None:
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    for name, value in (("num_frames", num_frames), ("num_ready", num_ready)):
        if value % block_size:
            nearest = max(round(value / block_size), 1) * block_size
            raise ValueError(
                f"{name} is {value} latent frames, not a multiple of block_size {block_size}; "
                f"nearest: {nearest}"
            )
    if num_frames < 1 or not 0 <= num_ready < num_frames:
        raise ValueError(
            f"num_ready {num_ready} of num_frames {num_frames}: at least one frame must be left "
            f"to make"
        )
    if ar_step < 0:
        raise ValueError(f"ar_step is {ar_step}; it must be 0 (synchronous) or more")
    base_blocks = base // block_size
    if base_blocks < 1:
        raise ValueError(f"base_num_frames {base} is less than one block of {block_size}")
    least = -(-steps // base_blocks)
    if base_blocks < num_frames // block_size and ar_step < least:
        raise ValueError(
            f"ar_step is {ar_step}; a window of {base_blocks} blocks with {steps} steps needs at "
            f"least {least}"
        )
