"""Sinusoids of time, and rotary positions of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ROPE_THETA = 10000.0


class Rotate(Protocol):
    """Rotates adjacent pairs of numbers, in float32; a host may bring a kernel of its own."""

    def __call__(self, x: Tensor, rope: Tensor, overwrite: bool) -> Tensor:
        """x (B, L, heads, d), `rope` of `rope_table` -> as x, which `overwrite` may write over."""
        ...


@dataclass(frozen=True)
class Positions:
    """Where the tokens of a grid lie along time, height and width: index * scale + shift.

    frames: the indices along time, where they are not 0, 1, 2, and so on.
    """

    scale: tuple[float, ...] = (1.0, 1.0, 1.0)
    shift: tuple[float, ...] = (0.0, 0.0, 0.0)
    frames: tuple[int, ...] | None = None


AT_INDICES = Positions()


def float64_device(device: torch.device) -> torch.device:
    """Where to compute in float64 for `device`: some accelerators (MPS) do not have it."""
    return device if device.type in ("cpu", "cuda", "meta") else torch.device("cpu")


def sinusoid(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding, angles in float64. (N,) -> (N, dim) float32 as [cos | sin]."""
    half, exact = dim // 2, float64_device(timestep.device)
    exponent = torch.arange(half, dtype=torch.float64, device=exact) / half
    angle = timestep.to(exact).double()[:, None] * torch.pow(ROPE_THETA, -exponent)  # (N, dim / 2)
    return torch.cat([angle.cos(), angle.sin()], dim=1).float().to(timestep.device)


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Split of a head's width over (time, height, width): 44, 42, 42 for 128."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def rope_table(
    grid: tuple[int, int, int],
    head_dim: int,
    device: torch.device,
    positions: Positions = AT_INDICES,
) -> Tensor:
    """Rotations of all tokens of a (frames, rows, columns) grid, as ComfyUI has them, float32.

    (1, L, 1, head_dim / 2, 2, 2): a matrix [[cos, -sin], [sin, cos]] for each pair of numbers.
    By default positions start at 0 in every window, as in the reference; angles are computed in
    float64.
    """
    parts, exact = [], float64_device(device)
    for axis, (size, width) in enumerate(zip(grid, rope_axes(head_dim), strict=True)):
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device=exact) / width
        position = torch.arange(size, dtype=torch.float64, device=exact)
        if axis == 0 and positions.frames is not None:
            position = torch.tensor(positions.frames, dtype=torch.float64, device=exact)
        position = position * positions.scale[axis] + positions.shift[axis]
        angle = position[:, None] * torch.pow(ROPE_THETA, -exponent)  # (size, width / 2)
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        parts.append(angle.reshape(shape).expand(*grid, width // 2))
    angle = torch.cat(parts, dim=-1).flatten(0, 2)  # (L, head_dim / 2)
    cos, sin = angle.cos().float(), angle.sin().float()
    del angle
    turns = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    return turns.to(device)[None, :, None]


def apply_rope(x: Tensor, rope: Tensor, overwrite: bool = False) -> Tensor:
    """Rotate adjacent pairs of x (B, L, heads, d) by `rope` of `rope_table`, in float32.

    With `overwrite`, x may be written over. In bf16 all ways give the same bits.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Ten times as fast there as strided real numbers.
        pairs = torch.view_as_complex(x.float().unflatten(3, (-1, 2)))
        turns = torch.view_as_complex(rope[..., 0].contiguous())
        pairs = pairs.mul_(turns) if overwrite else pairs * turns
        return torch.view_as_real(pairs).flatten(3).to(x.dtype)
    if not overwrite:
        return torch.stack(_rotate(x, rope), dim=-1).flatten(3).to(x.dtype)
    # A narrow x has no room for its float32 halves beside what a block holds at its peak.
    pieces = 2 if x.itemsize < rope.itemsize else 1
    for part, turn in zip(x.tensor_split(pieces, 1), rope.tensor_split(pieces, 1), strict=True):
        _rotate(part, turn, *part.unflatten(3, (-1, 2)).unbind(-1))
    return x


def _rotate(x: Tensor, rope: Tensor, *out: Tensor) -> tuple[Tensor, Tensor]:
    """First and second of each pair, rotated: (B, L, heads, d / 2) each, or into `out`."""
    first, second = x.unflatten(3, (-1, 2)).unbind(-1)
    column, other = rope.unbind(-1)
    halves = [first * column[..., 0], first * column[..., 1]]
    to = out or (None, None)
    rotated = torch.addcmul(halves[0], second, other[..., 0], out=to[0])
    return rotated, torch.addcmul(halves[1], second, other[..., 1], out=to[1])
