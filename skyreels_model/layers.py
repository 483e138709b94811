"""The parts of the diffusion transformer: norms, rotary positions, attention layers, the block.

Modulation stays per frame: it is (B, T, n, D) with T = latent frames (or 1 where all frames share
a timestep) and is broadcast over a frame's tokens, never expanded to them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attend

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


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate adjacent pairs of x (B, L, heads, d) by `rope` (L, 1, d / 2), in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(3, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(3).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift. x (B, L, D); shift and scale (B, T, D)."""
    normed = nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
    framed = normed.unflatten(1, (shift.shape[1], -1))  # (B, T, L / T, D)
    scale = (1 + scale).to(x.dtype)[:, :, None]
    return torch.addcmul(shift.to(x.dtype)[:, :, None], framed, scale).flatten(1, 2)


def gated_add(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """x + y * gate. x and y (B, L, D); gate (B, T, D)."""
    frames = (gate.shape[1], -1)
    x, y = x.unflatten(1, frames), y.unflatten(1, frames)  # (B, T, L / T, D)
    return torch.addcmul(x, y, gate.to(x.dtype)[:, :, None]).flatten(1, 2)


class Modulation(nn.Module):
    """The learned offset of a modulation, a leaf module so that a host can patch and move it."""

    def __init__(
        self, count: int, dim: int, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, count, dim, dtype=dtype, device=device))

    def forward(self, e: Tensor) -> Tensor:
        """e (B, T, count or 1, D) float32 -> (B, T, count, D) float32."""
        return self.weight.to(e)[:, None] + e


class Factory:
    """Makes layers of one dtype on one device from an `operations` namespace.

    `operations` is `torch.nn`, or a namespace of the same names whose layers cast their weights
    on the fly (ComfyUI's). A namespace may bring its own `Modulation`, and a `BlockLinear` for the
    blocks' large layers, the only ones whose weights may be held quantised.
    """

    def __init__(
        self, operations: Any, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        self.operations = operations
        self.settings: dict[str, Any] = {"dtype": dtype, "device": device}
        # In 8 bits only the blocks' large layers: the rest is small, and felt everywhere.
        narrow = dtype is not None and dtype.itemsize == 1
        self.fine = {**self.settings, "dtype": torch.float32} if narrow else self.settings

    def linear(self, n_in: int, n_out: int, dtype: torch.dtype | None = None) -> nn.Module:
        return self.operations.Linear(n_in, n_out, **self._with(dtype))

    def block_linear(self, n_in: int, n_out: int) -> nn.Module:
        made = getattr(self.operations, "BlockLinear", self.operations.Linear)
        return made(n_in, n_out, **self.settings)

    def fine_linear(self, n_in: int, n_out: int) -> nn.Module:
        return self.operations.Linear(n_in, n_out, **self.fine)

    def embedding(self, count: int, dim: int, dtype: torch.dtype | None = None) -> nn.Module:
        return self.operations.Embedding(count, dim, **self._with(dtype))

    def conv3d(self, n_in: int, n_out: int, kernel: tuple[int, int, int]) -> nn.Module:
        return self.operations.Conv3d(n_in, n_out, kernel_size=kernel, stride=kernel, **self.fine)

    def layer_norm(self, dim: int, eps: float) -> nn.Module:
        return self.operations.LayerNorm(dim, eps=eps, **self.fine)

    def rms_norm(self, dim: int, eps: float) -> nn.Module:
        return self.operations.RMSNorm(dim, eps=eps, **self.fine)

    def modulation(self, count: int, dim: int) -> nn.Module:
        made = getattr(self.operations, "Modulation", Modulation)
        return made(count, dim, **self.fine)

    def _with(self, dtype: torch.dtype | None) -> dict[str, Any]:
        return self.settings if dtype is None else {**self.settings, "dtype": dtype}


class SelfAttention(nn.Module):
    """Full attention over a window's tokens; RMS norm over all heads together, then rotation."""

    def __init__(self, dim: int, heads: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (make.block_linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = make.rms_norm(dim, eps), make.rms_norm(dim, eps)

    def forward(self, x: Tensor, rope: Tensor, attend: Attend) -> Tensor:
        """x (B, L, D) -> (B, L, D)."""
        q = self._rotated(self.norm_q(self.q(x)), rope)
        k = self._rotated(self.norm_k(self.k(x)), rope)
        return self.o(attend(q, k, self.v(x), self.heads))

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        return apply_rope(x.unflatten(2, (self.heads, -1)), rope).flatten(2)


class CrossAttention(nn.Module):
    """Attention to the text and, in I2V models, to the image: the two are summed before `o`."""

    def __init__(self, dim: int, heads: int, eps: float, image: bool, make: Factory) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (make.block_linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = make.rms_norm(dim, eps), make.rms_norm(dim, eps)
        if image:
            self.k_img, self.v_img = make.block_linear(dim, dim), make.block_linear(dim, dim)
            self.norm_k_img = make.rms_norm(dim, eps)

    def forward(self, x: Tensor, context: Tensor, image_tokens: int, attend: Attend) -> Tensor:
        """x (B, L, D); context (B, image_tokens + text rows, D), image first -> (B, L, D)."""
        q = self.norm_q(self.q(x))
        text = context[:, image_tokens:]
        out = attend(q, self.norm_k(self.k(text)), self.v(text), self.heads)
        if image_tokens:
            image = context[:, :image_tokens]
            k, v = self.norm_k_img(self.k_img(image)), self.v_img(image)
            out = out + attend(q, k, v, self.heads)
        return self.o(out)


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the first and last modulated by the time."""

    def __init__(
        self, dim: int, ffn_dim: int, heads: int, eps: float, image: bool, make: Factory
    ) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = make.modulation(6, dim)
        self.self_attn = SelfAttention(dim, heads, eps, make)
        self.norm3 = make.layer_norm(dim, eps)
        self.cross_attn = CrossAttention(dim, heads, eps, image, make)
        self.ffn = nn.Sequential(
            make.block_linear(dim, ffn_dim),
            nn.GELU(approximate="tanh"),
            make.block_linear(ffn_dim, dim),
        )

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        context: Tensor,
        rope: Tensor,
        image_tokens: int,
        attend_self: Attend,
        attend_cross: Attend,
    ) -> Tensor:
        """x (B, L, D), e (B, T, 6, D), context (B, N, D) -> (B, L, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(e).unbind(2)  # (B, T, D)
        y = self.self_attn(modulate(x, shift1, scale1, self.eps), rope, attend_self)
        x = gated_add(x, y, gate1)
        x = x + self.cross_attn(self.norm3(x), context, image_tokens, attend_cross)
        y = self.ffn(modulate(x, shift2, scale2, self.eps))
        return gated_add(x, y, gate2)


class Head(nn.Module):
    """Modulated norm and projection from tokens to patches; sees the time, never the fps."""

    def __init__(self, dim: int, patch_channels: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = make.modulation(2, dim)
        self.head = make.fine_linear(dim, patch_channels)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (B, L, D), e (B, T, D) -> (B, L, patch_channels)."""
        shift, scale = self.modulation(e[:, :, None]).unbind(2)  # (B, T, D)
        return self.head(modulate(x, shift, scale, self.eps))


class ImageEmbedding(nn.Module):
    """CLIP features to tokens of the transformer's width (I2V models)."""

    def __init__(self, clip_dim: int, dim: int, make: Factory) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            make.layer_norm(clip_dim, 1e-5),
            make.fine_linear(clip_dim, clip_dim),
            nn.GELU(),
            make.fine_linear(clip_dim, dim),
            make.layer_norm(dim, 1e-5),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, 257, clip_dim) -> (B, 257, D)."""
        return self.proj(features)
