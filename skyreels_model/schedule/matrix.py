"""The timestep matrix of a window: a row for each model call, a column for each latent frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    _check_matrix(num_frames, base_num_frames, ar_step, num_ready, block_size, len(timesteps))
    steps = len(timesteps)
    blocks, base_blocks = num_frames // block_size, base_num_frames // block_size
    done = steps + 1
    row = [done] * (num_ready // block_size) + [0] * (blocks - num_ready // block_size)
    index, update, windows = [], [], []
    end = base_blocks
    while min(row) < steps:
        new = _next_row(row, steps, ar_step)
        moved = [n != p and n != done for n, p in zip(new, row, strict=True)]
        if end < blocks and moved[end]:
            end += 1
        windows.append((max(end - base_blocks, 0) * block_size, min(end, blocks) * block_size))
        index.append(new)
        update.append(moved)
        row = new
    step_index = torch.tensor(index).repeat_interleave(block_size, dim=1)  # (R, F)
    mask = torch.tensor(update).repeat_interleave(block_size, dim=1)
    fresh = torch.zeros_like(mask)
    fresh[0, num_ready:] = True
    return TimestepMatrix(levels(timesteps)[step_index], step_index, mask, fresh, windows)


def window_matrix(
    num_frames: int,
    timesteps: Tensor,
    ar_step: int = 0,
    block_size: int = 1,
    num_given: int = 0,
    pictures: Sequence[int] = (),
    end: int = 0,
) -> TimestepMatrix:
    """Noise levels of one window of a film, for any length, block size and given frames.

    num_given: frames given at its start, a part of a block, too. pictures: places of further
    frames that are given as single pictures; when all others are done, these are made anew from
    noise, so that the film moves through them. end: frames shown, clean, behind the window's own
    `num_frames`. The last block may be shorter than the others. No row moves nothing.
    Where all lengths are whole blocks and nothing but whole blocks is given, it is
    `timestep_matrix`.
    """
    blocks = -(-num_frames // block_size) * block_size
    ready = num_given // block_size * block_size
    whole = timestep_matrix(blocks, timesteps, blocks, ar_step, ready, block_size)
    done, shown = len(timesteps) + 1, num_frames + end
    given = torch.zeros(shown, dtype=torch.bool)
    given[:num_given] = given[num_frames:] = True
    given[list(pictures)] = True
    index = torch.full((whole.rows, shown), done)
    index[:, :num_frames] = whole.index[:, :num_frames]
    update = torch.zeros(index.shape, dtype=torch.bool)
    update[:, :num_frames] = whole.update[:, :num_frames]
    index[:, given], update[:, given] = done, False
    moving = update.any(dim=1)
    index, update = index[moving], update[moving]
    fresh = torch.zeros_like(update)
    fresh[:1] = ~given
    if pictures:
        steps = torch.full((len(timesteps), shown), done)
        steps[:, list(pictures)] = torch.arange(1, done)[:, None]
        index, update = torch.cat([index, steps]), torch.cat([update, steps < done])
        fresh = torch.cat([fresh, (steps < done) & (steps == 1)])
    windows = [(0, shown)] * len(index)
    return TimestepMatrix(levels(timesteps)[index], index, update, fresh, windows)


def levels(timesteps: Tensor) -> Tensor:
    """Timestep by step number: not yet started (as the first step), N steps, done. (N + 2,)"""
    return torch.cat([timesteps[:1], timesteps, timesteps.new_tensor([0])])


def _next_row(row: list[int], steps: int, ar_step: int) -> list[int]:
    """Step numbers of the blocks one row later; a block waits until its predecessor is ahead."""
    unclamped: list[int] = []
    for i, previous in enumerate(row):
        free = i == 0 or row[i - 1] >= steps
        unclamped.append(previous + 1 if free else unclamped[i - 1] - ar_step)
    return [min(max(n, 0), steps + 1) for n in unclamped]


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
