"""Sinusoids of time, and rotary positions of tokens."""

from __future__ import annotations

import torch
from torch import Tensor

ROPE_THETA = 10000.0


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


def rope_table(grid: tuple[int, int, int], head_dim: int, device: torch.device) -> Tensor:
    """Rotations of all tokens of a (frames, rows, columns) grid: (L, 1, head_dim / 2) complex64.

    Positions start at 0 in every window, as in the reference; angles are computed in float64.
    """
    parts, exact = [], float64_device(device)
    for axis, (size, width) in enumerate(zip(grid, rope_axes(head_dim), strict=True)):
        exponent = torch.arange(0, width, 2, dtype=torch.float64, device=exact) / width
        position = torch.arange(size, dtype=torch.float64, device=exact)
        angle = position[:, None] * torch.pow(ROPE_THETA, -exponent)  # (size, width / 2)
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        parts.append(angle.reshape(shape).expand(*grid, width // 2))
    angle = torch.cat(parts, dim=-1).flatten(0, 2)  # (L, head_dim / 2)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)[:, None]


def apply_rope(x: Tensor, rope: Tensor, overwrite: bool = False) -> Tensor:
    """Rotate adjacent pairs of x (B, L, heads, d) by `rope` (L, 1, d / 2), in float32.

    With `overwrite`, x may be written over.
    """
    pairs = torch.view_as_complex(x.float().unflatten(3, (-1, 2)))
    pairs = pairs.mul_(rope) if overwrite else pairs * rope
    return torch.view_as_real(pairs).flatten(3).to(x.dtype)
