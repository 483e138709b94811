"""GGUF's quantised blocks to numbers, in torch: on any device, one weight at a time.

A weight is rows of blocks; a block is a run of bytes with its own scale. Layouts: the GGML types
as published by ggml-org; checked against the `gguf` package's own functions in the tests.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Values of a 4-bit step in the non-linear formats IQ4_NL and IQ4_XS.
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
SUPER = 256
PIECE = 2**23  # numbers made at a time: 120 MB, and not too many launches on a GPU


def dequantize(data: Tensor, kind: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Bytes of a weight of `shape`, in the format `kind`, as numbers in `dtype`.

    data is uint8 of any shape. Scales are 16-bit floats; products are computed in float32, piece by
    piece, for they take up to 15 bytes a number. Raises ValueError for a format that is not in
    `FORMATS`.
    """
    if kind not in FORMATS:
        raise ValueError(f"GGUF format {kind!r} is not known; known are {', '.join(FORMATS)}")
    count, size, _, decode = FORMATS[kind]
    blocks = data.reshape(-1, size)
    out = torch.empty(len(blocks), count, dtype=dtype, device=data.device)
    for part, numbers in zip(blocks.split(PIECE // count), out.split(PIECE // count), strict=True):
        numbers.copy_(decode(part))
    return out.reshape(shape)


def scales(data: Tensor, kind: str) -> Tensor:
    """The 16-bit floats by which the blocks of a weight are scaled, (N, 1 or 2)."""
    _, size, where, _ = FORMATS[kind]
    return data.reshape(-1, size)[:, where].contiguous().view(torch.float16)


def _halves(bytes_: Tensor) -> Tensor:
    """Pairs of bytes as float16 numbers in float32. (N, 2n) -> (N, n)."""
    return bytes_.contiguous().view(torch.float16).float()


def _nibbles(bytes_: Tensor, run: int) -> Tensor:
    """4-bit numbers: of each run of bytes first all low halves, then all high. (N, n) -> (N, 2n)"""
    runs = bytes_.unflatten(1, (-1, 1, run))  # (N, runs, 1, run)
    return torch.cat([runs & 0x0F, runs >> 4], dim=2).flatten(1)


def _bits(bytes_: Tensor) -> Tensor:
    """The bits of each 4 bytes, lowest first. (N, 4) -> (N, 32)."""
    shift = torch.arange(8, device=bytes_.device, dtype=torch.uint8)
    return (bytes_[..., None] >> shift & 1).flatten(1)


def _q4_0(x: Tensor) -> Tensor:
    return _halves(x[:, :2]) * (_nibbles(x[:, 2:], 16).float() - 8)


def _q4_1(x: Tensor) -> Tensor:
    return _halves(x[:, :2]) * _nibbles(x[:, 4:], 16).float() + _halves(x[:, 2:4])


def _q5_0(x: Tensor) -> Tensor:
    steps = _nibbles(x[:, 6:], 16) | _bits(x[:, 2:6]) << 4
    return _halves(x[:, :2]) * (steps.float() - 16)


def _q5_1(x: Tensor) -> Tensor:
    steps = _nibbles(x[:, 8:], 16) | _bits(x[:, 4:8]) << 4
    return _halves(x[:, :2]) * steps.float() + _halves(x[:, 2:4])


def _q8_0(x: Tensor) -> Tensor:
    return _halves(x[:, :2]) * x[:, 2:].contiguous().view(torch.int8).float()


def _two_bits(bytes_: Tensor) -> Tensor:
    """2-bit numbers: of each 32 bytes first the lowest pairs of bits, then the next. -> (N, 256)"""
    shift = torch.tensor([0, 2, 4, 6], device=bytes_.device, dtype=torch.uint8)
    return (bytes_.unflatten(1, (2, 1, 32)) >> shift[:, None] & 3).flatten(1)


def _q2_k(x: Tensor) -> Tensor:
    scales, steps = x[:, :16], _two_bits(x[:, 16:80]).unflatten(1, (16, 16))
    scale = _halves(x[:, 80:82]) * (scales & 0x0F).float()  # (N, 16)
    lowest = _halves(x[:, 82:84]) * (scales >> 4).float()
    return (scale[..., None] * steps.float() - lowest[..., None]).flatten(1)


def _q3_k(x: Tensor) -> Tensor:
    shift = torch.arange(8, device=x.device, dtype=torch.uint8)
    high = (x[:, None, :32] >> shift[:, None] & 1).flatten(1)  # (N, 256): a bit a run of 32
    low = _two_bits(x[:, 32:96])
    packed = x[:, 96:108]
    pairs = torch.tensor([0, 2, 4, 6], device=x.device, dtype=torch.uint8)
    upper = (packed[:, None, 8:] >> pairs[:, None] & 3).flatten(1)  # (N, 16)
    scales = (_nibbles(packed[:, :8], 8) | upper << 4).float() - 32  # (N, 16)
    # A high bit that is not set takes 4 away.
    steps = low.float() - 4 * (1 - high.float())
    scale = _halves(x[:, 108:110]) * scales
    return (scale[..., None] * steps.unflatten(1, (16, 16))).flatten(1)


def _six_bit_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    """8 scales and 8 minima of 6 bits from 12 bytes. (N, 12) -> (N, 8), (N, 8) float32."""
    first, second, upper = x[:, :4], x[:, 4:8], x[:, 8:]
    scales = torch.cat([first & 0x3F, (upper & 0x0F) | (first >> 2 & 0x30)], dim=1)
    minima = torch.cat([second & 0x3F, (upper >> 4) | (second >> 2 & 0x30)], dim=1)
    return scales.float(), minima.float()


def _scale_and_shift(x: Tensor, steps: Tensor) -> Tensor:
    """Q4_K and Q5_K: 8 runs of 32 steps, each with a scale and a minimum. steps (N, 256)."""
    scales, minima = _six_bit_scales(x[:, 4:16])
    scale, lowest = _halves(x[:, :2]) * scales, _halves(x[:, 2:4]) * minima  # (N, 8)
    runs = steps.unflatten(1, (8, 32)).float()
    return (scale[..., None] * runs - lowest[..., None]).flatten(1)


def _q4_k(x: Tensor) -> Tensor:
    return _scale_and_shift(x, _nibbles(x[:, 16:], 32))


def _q5_k(x: Tensor) -> Tensor:
    shift = torch.arange(8, device=x.device, dtype=torch.uint8)
    high = (x[:, None, 16:48] >> shift[:, None] & 1).flatten(1)  # (N, 256)
    return _scale_and_shift(x, _nibbles(x[:, 48:], 32) | high << 4)


def _q6_k(x: Tensor) -> Tensor:
    low = _nibbles(x[:, :128], 64)  # (N, 256)
    high = _two_bits(x[:, 128:192])
    steps = (low | high << 4).float() - 32
    scales = x[:, 192:208].contiguous().view(torch.int8).float()
    scale = _halves(x[:, 208:210]) * scales  # (N, 16)
    return (scale[..., None] * steps.unflatten(1, (16, 16))).flatten(1)


def _iq4_nl(x: Tensor) -> Tensor:
    values = torch.tensor(_NONLINEAR, dtype=torch.float32, device=x.device)
    return _halves(x[:, :2]) * values[_nibbles(x[:, 2:], 16).long()]


def _iq4_xs(x: Tensor) -> Tensor:
    values = torch.tensor(_NONLINEAR, dtype=torch.float32, device=x.device)
    low = _nibbles(x[:, 4:8, None].flatten(0, 1), 1).reshape(-1, 8)
    pairs = torch.tensor([0, 2, 4, 6], device=x.device, dtype=torch.uint8)
    high = (x[:, 2:4, None] >> pairs & 3).flatten(1)  # (N, 8)
    scale = _halves(x[:, :2]) * ((low | high << 4).float() - 32)  # (N, 8)
    steps = values[_nibbles(x[:, 8:], 16).long()].unflatten(1, (8, 32))
    return (scale[..., None] * steps).flatten(1)


# Format -> numbers in a block, bytes in it, where among those 16-bit floats are, how to read one.
FORMATS: dict[str, tuple[int, int, slice, Callable[[Tensor], Tensor]]] = {
    "Q4_0": (32, 18, slice(0, 2), _q4_0),
    "Q4_1": (32, 20, slice(0, 4), _q4_1),
    "Q5_0": (32, 22, slice(0, 2), _q5_0),
    "Q5_1": (32, 24, slice(0, 4), _q5_1),
    "Q8_0": (32, 34, slice(0, 2), _q8_0),
    "Q2_K": (SUPER, 84, slice(80, 84), _q2_k),
    "Q3_K": (SUPER, 110, slice(108, 110), _q3_k),
    "Q4_K": (SUPER, 144, slice(0, 4), _q4_k),
    "Q5_K": (SUPER, 176, slice(0, 4), _q5_k),
    "Q6_K": (SUPER, 210, slice(208, 210), _q6_k),
    "IQ4_NL": (32, 18, slice(0, 2), _iq4_nl),
    "IQ4_XS": (SUPER, 136, slice(0, 2), _iq4_xs),
}
