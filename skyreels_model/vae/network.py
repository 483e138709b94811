"""The Wan 2.1 causal video VAE: frames to latents and back, whole or as a stream.

8x8 pixels and 4 frames make one latent position, except that the first frame has a latent of its
own: 1 + 4k frames are 1 + k latents. Everything looks back in time only, so a film can be coded
chunk by chunk; a whole film is a stream fed once.
Facts from SkyworkAI/SkyReels-V2 skyreels_v2_infer/modules/vae.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..rules import refusal
from .config import vae_config_from_state_dict
from .layers import Decoder, Encoder, Factory
from .past import Past

# Per channel, over the training set of Wan 2.1; the model works on (mu - mean) / std.
LATENT_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENT_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
FRAME_CHANNELS = 3


def normalize_latents(mu: Tensor) -> Tensor:
    """Raw means of `VideoVAE.encode` -> latents of the diffusion model, (B, 16, F, h, w)."""
    mean, std = _statistics("mu", mu)
    return ((mu - mean) / std).to(mu.dtype)


def denormalize_latents(z: Tensor) -> Tensor:
    """Latents of the diffusion model -> input of `VideoVAE.decode`, (B, 16, F, h, w)."""
    mean, std = _statistics("z", z)
    return (z * std + mean).to(z.dtype)


def _statistics(name: str, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std as (16, 1, 1, 1), at least in float32, on the latents' device."""
    _check_layout(name, latents, len(LATENT_MEAN))
    dtype = torch.promote_types(latents.dtype, torch.float32)
    table = torch.tensor((LATENT_MEAN, LATENT_STD), dtype=dtype, device=latents.device)
    mean, std = table[:, :, None, None, None]
    return mean, std


class VideoVAE(nn.Module):
    """Wan 2.1 VAE; its state dict has the names and shapes of `Wan2.1_VAE.pth`.

    dim is the width at full resolution, dim_mult its factor at each level of resolution, and
    temporal_downsample says which of the steps between levels halve time as well.
    Layers are made from `operations`; run it in the dtype of its input.
    """

    def __init__(
        self,
        dim: int = 96,
        z_dim: int = 16,
        dim_mult: tuple[int, ...] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        temporal_downsample: tuple[bool, ...] = (False, True, True),
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        if len(temporal_downsample) != len(dim_mult) - 1:
            raise refusal(
                "the number of temporal_downsample",
                len(temporal_downsample),
                f"one less than that of dim_mult, {len(dim_mult)}",
                len(dim_mult) - 1,
            )
        make = Factory(operations, dtype, device)
        shape = (tuple(dim_mult), num_res_blocks, tuple(temporal_downsample))
        self.z_dim = z_dim
        self.space_factor = 2 ** len(temporal_downsample)
        self.time_factor = 2 ** sum(temporal_downsample)
        self.encoder = Encoder(dim, 2 * z_dim, *shape, make)
        self.conv1 = make.pointwise3d(2 * z_dim, 2 * z_dim)
        self.conv2 = make.pointwise3d(z_dim, z_dim)
        self.decoder = Decoder(dim, z_dim, *shape, make)

    @classmethod
    def from_state_dict(
        cls,
        state_dict: Mapping[str, Tensor],
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: Any = None,
    ) -> VideoVAE:
        """A VAE of the state dict's configuration, its weights not loaded.

        Raises ValueError where the state dict is not one of a Wan 2.1 VAE.
        """
        config = vae_config_from_state_dict(state_dict)
        return cls(**config, operations=operations, dtype=dtype, device=device)

    def encode(self, x: Tensor) -> Tensor:
        """Frames -> raw means of their latents (not normalised, not sampled).

        x (B, 3, 1+4k, H, W) in [-1, 1], H and W multiples of 8 -> (B, 16, 1+k, H/8, W/8).
        Raises ValueError for any other shape; the reference drops frames beyond 1+4k instead.
        """
        return self.encode_stream().push(x)

    def decode(self, z: Tensor) -> Tensor:
        """Raw latents -> frames, not clamped: (B, 16, L, h, w) -> (B, 3, 1+4(L-1), 8h, 8w)."""
        return self.decode_stream().push(z)

    def encode_stream(self, cache: Iterable[Tensor] = ()) -> EncodeStream:
        """A stream from its start, or from where the stream with this cache stood."""
        return EncodeStream(self, cache)

    def decode_stream(self, cache: Iterable[Tensor] = ()) -> DecodeStream:
        """A stream from its start, or from where the stream with this cache stood."""
        return DecodeStream(self, cache)


class EncodeStream:
    """Encodes a film pushed chunk by chunk.

    `cache` is the whole state: one tensor per causal layer, of constant size, empty at the start.
    A push replaces its entries and never writes into them, so `list(stream.cache)` is a snapshot.
    A push that raises midway leaves the cache between two steps: resume from a snapshot.
    """

    def __init__(self, vae: VideoVAE, cache: Iterable[Tensor] = ()) -> None:
        self.vae = vae
        self.cache = list(cache)

    def push(self, frames: Tensor) -> Tensor:
        """The next frames -> raw means of their latents, (B, 3, T, H, W) -> (B, 16, t, H/8, W/8).

        The first push takes T = 1+4k frames (t = 1+k), later ones T = 4k (t = k), k >= 1.
        Raises ValueError for another number of frames, or another size than the first push's.
        """
        self.check(frames)
        return torch.cat([self._step(chunk) for chunk in self.steps(frames)], dim=2)

    def steps(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The next frames, (B, 3, T, H, W), cut into those of one latent each."""
        first = [] if self.cache else [1]
        count = (frames.shape[2] - len(first)) // self.vae.time_factor
        return frames.split(first + [self.vae.time_factor] * count, dim=2)

    def _step(self, chunk: Tensor) -> Tensor:
        moments = self.vae.conv1(self.vae.encoder(chunk, Past(self.cache)))
        return moments[:, : self.vae.z_dim]

    def check(self, frames: Tensor) -> None:
        """Raise what `push` would."""
        _check_layout("frames", frames, FRAME_CHANNELS)
        step = self.vae.time_factor
        length = frames.shape[2]
        if self.cache:
            _check_continues("frames", frames, self.cache[0])
            rule, nearest = f"{step}k with k >= 1 after the first push", _nearest(length, step)
        else:
            rule, nearest = f"1 + {step}k", 1 + _nearest(length - 1, step, minimum=0)
        _check_equal("frames", "number of frames", length, rule, nearest)
        for side, size in (("height", frames.shape[3]), ("width", frames.shape[4])):
            factor = self.vae.space_factor
            _check_equal("frames", side, size, f"a multiple of {factor}", _nearest(size, factor))


class DecodeStream:
    """Decodes a film pushed chunk by chunk; `cache` as in `EncodeStream`."""

    def __init__(self, vae: VideoVAE, cache: Iterable[Tensor] = ()) -> None:
        self.vae = vae
        self.cache = list(cache)

    def push(self, latents: Tensor) -> Tensor:
        """The next raw latents -> their frames: (B, 16, L, h, w) -> (B, 3, T, 8h, 8w), L >= 1.

        The stream's first latent becomes 1 frame, each later one 4; not clamped.
        Raises ValueError for other channels, or another size than the first push's.
        """
        self.check(latents)
        return torch.cat([self._step(latent) for latent in self.steps(latents)], dim=2)

    def steps(self, latents: Tensor) -> tuple[Tensor, ...]:
        """The next latents, (B, 16, L, h, w), one by one."""
        return latents.split(1, dim=2)

    def check(self, latents: Tensor) -> None:
        """Raise what `push` would."""
        _check_layout("latents", latents, self.vae.z_dim)
        if self.cache:
            _check_continues("latents", latents, self.cache[0])

    def _step(self, latent: Tensor) -> Tensor:
        return self.vae.decoder(self.vae.conv2(latent), Past(self.cache))


def _check_layout(name: str, x: Tensor, channels: int) -> None:
    if x.ndim != 5:
        layout = f"(batch, {channels}, frames, height, width)"
        raise refusal(f"the shape of {name}", tuple(x.shape), layout)
    _check_equal(name, "number of channels", x.shape[1], str(channels), channels)
    if 0 in x.shape:
        nearest = tuple(max(size, 1) for size in x.shape)
        raise refusal(f"the shape of {name}", tuple(x.shape), "1 or more in every size", nearest)


def _check_continues(name: str, x: Tensor, past: Tensor) -> None:
    """The first cache slot holds the stream's last inputs, hence its batch and frame size."""
    given, first = (tuple(t.shape[:1] + t.shape[3:]) for t in (x, past))
    if given != first:
        what = f"the (batch, height, width) of {name}"
        raise refusal(what, given, "that of the stream's first push", first)


def _check_equal(name: str, what: str, given: int, rule: str, nearest: int) -> None:
    """Raise unless the given number is the nearest one that keeps the rule."""
    if given != nearest:
        raise refusal(f"the {what} of {name}", given, rule, nearest)


def _nearest(value: int, step: int, minimum: int = 1) -> int:
    """The multiple of step, at least minimum steps, that is nearest to value; ties go up."""
    return max((value + step // 2) // step, minimum) * step
