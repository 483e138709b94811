"""What coding takes beside the weights: counted on meta, within 15 % of what the host is told."""

import pytest
import torch

from devtools.live_bytes import LiveBytes
from skyreels_model.vae import VideoVAE
from skyreels_model.vae_memory import decode_bytes, encode_bytes

NEAR = 0.15


def peak(call, shape, dtype):
    """Bytes that a call makes at its peak, what it is given not counted."""
    given = torch.empty(1, *shape, dtype=dtype, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        call(given)
    return live.peak


# A narrow VAE's frames soon weigh as much beside its stream as half a minute's at full width.
@pytest.mark.parametrize(
    ("width", "latents", "size", "dtype"),
    [
        (96, 3, (30, 52), torch.float32),
        (96, 3, (90, 160), torch.bfloat16),
        (48, 3, (68, 120), torch.bfloat16),
        (16, 30, (68, 120), torch.bfloat16),
    ],
)
def test_decoding(width, latents, size, dtype):
    model = VideoVAE(dim=width, dtype=dtype, device="meta").requires_grad_(False)
    told = decode_bytes(width, latents, *size, dtype.itemsize)
    assert abs(told / peak(model.decode, (16, latents, *size), dtype) - 1) < NEAR


@pytest.mark.parametrize("frames", [5, 13])
@pytest.mark.parametrize(("size", "dtype"), [((240, 416), torch.float32),
                                             ((720, 1280), torch.bfloat16)])  # fmt: skip
def test_encoding(frames, size, dtype):
    model = VideoVAE(dtype=dtype, device="meta").requires_grad_(False)
    given = 3 * frames * size[0] * size[1] * dtype.itemsize
    needed = given + peak(model.encode, (3, frames, *size), dtype)
    assert abs(encode_bytes(96, frames, *size, dtype.itemsize) / needed - 1) < NEAR
