"""Layers of the Wan 2.1 causal video VAE: what runs on one step of a stream.

A step is the first frame alone, or one latent's worth of frames after it. Layers that look back
in time get the frames before the step from `Past`; they hold no state themselves.
Facts from SkyworkAI/SkyReels-V2 skyreels_v2_infer/modules/vae.py; names of modules are those of
`Wan2.1_VAE.pth`, which counts parameter-free layers too (hence the ModuleDicts keyed by number).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operations import Operations
from .past import Past, no_past
from .small import convolve, is_plain, is_small

NORM_FLOOR = 1e-12
# A power of two, hence exact: keeps x * gamma inside float16 before x is normalised.
HEADROOM = 16.0
# Frames that go through the finest levels at a time: the fewer, the less memory, and the more
# often the past is copied in front of them.
PIECE = 2
# Most scores of the attention at a time, where the back end forms them at all.
SCORES = 1 << 24


def per_frame(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer on images, (N, C, H, W), to each frame of x (B, C, T, H, W) in turn."""
    if is_small(x):
        return layer(x[0].transpose(0, 1)).transpose(0, 1)[None]  # of one clip
    return torch.stack([layer(image) for image in x.unbind(dim=2)], dim=2)


class RMSNorm(nn.Module):
    """Scale each position's channel vector to length sqrt(C), then by gamma; channels on dim 1.

    The length is summed in float32 whatever the input's dtype; the result has the input's dtype.
    """

    def __init__(self, dim: int, spatial_dims: int, dtype: Any, device: Any) -> None:
        super().__init__()
        shape = (dim,) + (1,) * spatial_dims
        self.gamma = nn.Parameter(torch.ones(shape, dtype=dtype, device=device))

    def measure(self, x: Tensor) -> Tensor:
        """What each position of x is multiplied with, beside gamma: x's shape with one channel."""
        if is_plain(x):
            # There `vector_norm` goes through a position's channels one by one.
            square = x.square().sum(dim=1, keepdim=True).clamp_min(NORM_FLOOR**2)
            return square.rsqrt().mul(HEADROOM * x.shape[1] ** 0.5)
        dtype = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=dtype)
        return (HEADROOM * x.shape[1] ** 0.5) / length.clamp_min(NORM_FLOOR)

    def scale(self, x: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
        """x, scaled by what was measured; into `out`, of x's shape, where one is given."""
        # In place, a float32 scale multiplies a half-precision tensor without a float32 copy of it.
        return torch.mul(x, (self.gamma / HEADROOM).to(x), out=out).mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x, self.measure(x))


def norm_silu_conv(norm: Any, conv: nn.Module, x: Tensor, past: Past) -> Tensor:
    """RMS norm, SiLU and a causal 3x3x3 convolution: (B, C, T, H, W) -> (B, C', T, H, W)."""
    # x is rebound at each line so that no intermediate outlives its use.
    if torch.is_grad_enabled():
        x = past.prepend(F.silu(norm(x), inplace=True), 2)
    else:
        # Straight into the place behind the past: joined afterwards, it would be moved once more.
        scale = norm.measure(x)
        joined, place = past.make_room(x, 2)
        F.silu(norm.scale(x, scale, out=place), inplace=True)
        x = joined
        del joined, place, scale
    past.keep(x, 2)
    return convolve(conv, x)


class Factory:
    """Makes the host's layers with the storage dtype and device already chosen."""

    def __init__(self, operations: Operations, dtype: Any, device: Any) -> None:
        self.operations = operations
        self.placement = {"dtype": dtype, "device": device}

    def conv3d(self, dim: int, out_dim: int) -> nn.Module:
        """3x3x3; the causal past is prepended by the caller, so time is not padded."""
        return self.operations.Conv3d(dim, out_dim, 3, padding=(0, 1, 1), **self.placement)

    def time_conv(self, dim: int, out_dim: int, stride: int = 1) -> nn.Module:
        return self.operations.Conv3d(
            dim, out_dim, (3, 1, 1), stride=(stride, 1, 1), **self.placement
        )

    def pointwise3d(self, dim: int, out_dim: int) -> nn.Module:
        return self.operations.Conv3d(dim, out_dim, 1, **self.placement)

    def conv2d(self, dim: int, out_dim: int, kernel: int, **options: int) -> nn.Module:
        return self.operations.Conv2d(dim, out_dim, kernel, **options, **self.placement)

    def norm(self, dim: int, spatial_dims: int = 3) -> RMSNorm:
        return RMSNorm(dim, spatial_dims, **self.placement)


class ResidualBlock(nn.Module):
    """Two norm-SiLU-convolutions beside a shortcut: (B, dim, T, H, W) -> (B, out_dim, T, H, W)."""

    def __init__(self, dim: int, out_dim: int, make: Factory) -> None:
        super().__init__()
        self.residual = nn.ModuleDict(
            {
                "0": make.norm(dim),
                "2": make.conv3d(dim, out_dim),
                "3": make.norm(out_dim),
                "6": make.conv3d(out_dim, out_dim),
            }
        )
        self.shortcut = nn.Identity() if dim == out_dim else make.pointwise3d(dim, out_dim)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        norm1, conv1, norm2, conv2 = self.residual.values()
        residual = norm_silu_conv(norm2, conv2, norm_silu_conv(norm1, conv1, x, past), past)
        return residual.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the h*w positions of each frame; keeps (B, C, T, h, w)."""

    def __init__(self, dim: int, make: Factory) -> None:
        super().__init__()
        self.norm = make.norm(dim, spatial_dims=2)
        self.to_qkv = make.conv2d(dim, 3 * dim, 1)
        self.proj = make.conv2d(dim, dim, 1)

    def attend(self, images: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)"""
        qkv = self.to_qkv(self.norm(images)).flatten(2)  # (N, 3C, h*w)
        # Fused kernels want the channels of a token side by side.
        tokens = qkv.transpose(1, 2).contiguous().unsqueeze(1)  # (N, 1, h*w, 3C)
        queries, keys, values = tokens.chunk(3, dim=-1)
        attended = [
            F.scaled_dot_product_attention(some, keys, values)
            for some in queries.split(max(SCORES // keys.shape[2], 1), dim=2)
        ]
        images = torch.cat(attended, dim=2).squeeze(1).transpose(1, 2).reshape(images.shape)
        return self.proj(images)

    def forward(self, x: Tensor) -> Tensor:
        return x + per_frame(self.attend, x)


class Downsample(nn.Module):
    """Halve height and width, then (temporal) the frames after the first.

    (B, C, T, H, W) -> (B, C, T or T/2, H/2, W/2)
    """

    def __init__(self, dim: int, temporal: bool, make: Factory) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": make.conv2d(dim, dim, 3, stride=2)})
        self.time_conv = make.time_conv(dim, dim, stride=2) if temporal else None

    def shrink(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H/2, W/2); the padding is on the right and bottom only."""
        return self.resample["1"](F.pad(images, (0, 1, 0, 1)))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = per_frame(self.shrink, x)
        if self.time_conv is None:
            return x
        if past.first:
            past.store(x)
            return x
        return convolve(self.time_conv, past.extend(x, 1))


class Upsample(nn.Module):
    """Double (temporal) the frames after the first, then height and width; halve the channels.

    (B, C, T, H, W) -> (B, C/2, T or 2T, 2H, 2W)
    """

    def __init__(self, dim: int, temporal: bool, make: Factory) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": make.conv2d(dim, dim // 2, 3, padding=1)})
        self.time_conv = make.time_conv(dim, 2 * dim) if temporal else None

    def enlarge(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C/2, 2H, 2W)"""
        return self.resample["1"](F.interpolate(images, scale_factor=2.0, mode="nearest-exact"))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        if self.time_conv is not None:
            if past.first:
                # As in the reference, the second step does not see the first frame.
                past.store(no_past(x, 2))
            else:
                pairs = convolve(self.time_conv, past.extend(x, 2)).unflatten(1, (2, -1))
                x = pairs.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)  # (B, C, 2T, H, W)
        return per_frame(self.enlarge, x)


def middle(dim: int, make: Factory) -> nn.ModuleList:
    return nn.ModuleList(
        [ResidualBlock(dim, dim, make), AttentionBlock(dim, make), ResidualBlock(dim, dim, make)]
    )


def run_middle(blocks: nn.ModuleList, x: Tensor, past: Past) -> Tensor:
    """(B, C, T, h, w) -> (B, C, T, h, w)"""
    before, attention, after = blocks
    return after(attention(before(x, past)), past)


def head(dim: int, out_dim: int, make: Factory) -> nn.ModuleDict:
    return nn.ModuleDict({"0": make.norm(dim), "2": make.conv3d(dim, out_dim)})


def in_pieces(layers: Callable[[Tensor, Past], Tensor], x: Tensor, past: Past) -> Tensor:
    """Layers that keep the number of frames, on PIECE frames of x (B, C, T, H, W) at a time."""
    if is_small(x):
        return layers(x, past)  # memory is of no matter, calls are
    start, pieces = past.slot, []
    for piece in x.split(PIECE, dim=2):
        past.slot = start
        pieces.append(layers(piece, past))
    return torch.cat(pieces, dim=2)


class Encoder(nn.Module):
    """One step of frames to moments: (B, 3, T, H, W) -> (B, out_dim, t, H/8, W/8).

    T = 1 at the first step, T = 4 later; t = 1 (at the published configuration).
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        dim_mult: tuple[int, ...],
        num_res_blocks: int,
        temporal_downsample: tuple[bool, ...],
        make: Factory,
    ) -> None:
        super().__init__()
        width = dim
        self.conv1 = make.conv3d(3, dim)
        self.downsamples = nn.ModuleList()
        self.joint = 0  # blocks before it take a step in pieces
        for level, mult in enumerate(dim_mult):
            for _ in range(num_res_blocks):
                self.downsamples.append(ResidualBlock(width, dim * mult, make))
                width = dim * mult
            if level < len(temporal_downsample):
                if not any(temporal_downsample[:level]):
                    self.joint = len(self.downsamples)
                self.downsamples.append(Downsample(width, temporal_downsample[level], make))
        self.middle = middle(width, make)
        self.head = head(width, out_dim, make)

    def forward(self, x: Tensor, past: Past) -> Tensor:
        x = in_pieces(self._fine, x, past)
        for block in self.downsamples[self.joint :]:
            x = block(x, past)
        x = run_middle(self.middle, x, past)
        return norm_silu_conv(self.head["0"], self.head["2"], x, past)

    def _fine(self, x: Tensor, past: Past) -> Tensor:
        """The levels before time is halved: (B, 3, T, H, W) -> (B, C, T, H', W')."""
        x = convolve(self.conv1, past.extend(x, 2))
        for block in self.downsamples[: self.joint]:
            x = block(x, past)
        return x


class Decoder(nn.Module):
    """One latent to its frames: (B, z_dim, 1, h, w) -> (B, 3, T, 8h, 8w), T = 1 at first, then 4.

    Each level has one residual block more than the encoder's, and doubles time where the
    encoder's mirror image halves it.
    """

    def __init__(
        self,
        dim: int,
        z_dim: int,
        dim_mult: tuple[int, ...],
        num_res_blocks: int,
        temporal_downsample: tuple[bool, ...],
        make: Factory,
    ) -> None:
        super().__init__()
        width = dim * dim_mult[-1]
        self.conv1 = make.conv3d(z_dim, width)
        self.middle = middle(width, make)
        self.upsamples = nn.ModuleList()
        self.joint = 0  # blocks from it on take a step in pieces
        temporal_upsample = temporal_downsample[::-1]
        for level, mult in enumerate(reversed(dim_mult)):
            for _ in range(num_res_blocks + 1):
                self.upsamples.append(ResidualBlock(width, dim * mult, make))
                width = dim * mult
            if level < len(temporal_upsample):
                self.upsamples.append(Upsample(width, temporal_upsample[level], make))
                width //= 2
                if temporal_upsample[level]:
                    self.joint = len(self.upsamples)
        self.split = max(self.joint - 1, 0)  # blocks from it on are `fine`
        self.head = head(width, 3, make)

    @property
    def stages(self) -> list[tuple[int, int]]:
        """The blocks of each stage before `fine`: it ends where the picture has been enlarged."""
        before = self.upsamples[: self.split]
        ends = [number + 1 for number, block in enumerate(before) if isinstance(block, Upsample)]
        return list(itertools.pairwise([0, *ends, self.split]))

    def forward(self, x: Tensor, past: Past) -> Tensor:
        return self.fine(self.coarse(x, past, 0, self.split), past)

    def coarse(self, x: Tensor, past: Past, start: int, stop: int) -> Tensor:
        """Blocks [start, stop) before `fine`, with what comes before the first.

        (B, C, t, h, w) -> (B, C', t', h', w')
        """
        if start == 0:
            x = convolve(self.conv1, past.extend(x, 2))
            x = run_middle(self.middle, x, past)
        for block in self.upsamples[start:stop]:
            x = block(x, past)
        return x

    def fine(self, x: Tensor, past: Past) -> Tensor:
        """The rest, none of which sees far: (B, C, t, h', w') -> (B, 3, T, H, W)."""
        for block in self.upsamples[self.split : self.joint]:
            x = block(x, past)
        return in_pieces(self._finest, x, past)

    def _finest(self, x: Tensor, past: Past) -> Tensor:
        """The levels after the last doubling of time: (B, C, T, H', W') -> (B, 3, T, H, W)."""
        for block in self.upsamples[self.joint :]:
            x = block(x, past)
        return norm_silu_conv(self.head["0"], self.head["2"], x, past)
