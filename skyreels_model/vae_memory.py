"""Bytes that the VAE takes beside its weights: a stream's, and the frames that go in or come out.

A stream's do not grow with the film: they are the widest activations at full resolution, and what
the causal layers keep of the past.
"""

from __future__ import annotations

from .vae import FRAME_CHANNELS

WIDTH = 96
# Numbers a latent position (8 x 8 pixels, 4 frames) at the peak of a step, at that width.
ENCODE, DECODE = 188_160, 250_416
KEPT = 0.61  # of a decoder's peak is there between two steps, too
# For what a library's convolutions take themselves: a guess, it differs from card to card.
WORKSPACE = 1.1


def decode_bytes(width: int, latents: int, h: int, w: int, itemsize: int) -> int:
    """Peak of decoding latents (1, C, latents, h, w) in one call, by a VAE of this base width."""
    stream = round(WORKSPACE * DECODE * width / WIDTH) * h * w * itemsize
    frames = _frame_bytes(4 * latents - 3, 8 * h, 8 * w, itemsize)
    # All pieces of the film lie there twice, when they are joined.
    return max(stream + frames, round(KEPT * stream) + 2 * frames)


def encode_bytes(width: int, frames: int, height: int, width_px: int, itemsize: int) -> int:
    """Peak of encoding frames (1, 3, frames, height, width_px) in one call."""
    positions = height * width_px // 64
    stream = round(WORKSPACE * ENCODE * width / WIDTH) * positions * itemsize
    return stream + _frame_bytes(frames, height, width_px, itemsize)


def _frame_bytes(frames: int, height: int, width: int, itemsize: int) -> int:
    return FRAME_CHANNELS * frames * height * width * itemsize
