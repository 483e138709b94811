"""Frames, latents and pixels: how many of one hold so many of another."""

from __future__ import annotations

CHANNELS = 16
SPATIAL_STRIDE = 8
SIZE_MULTIPLE = 16


def frames_of_seconds(seconds: float, fps: int) -> int:
    """The number of frames of a length in seconds, at least 1; both are legal numbers."""
    return max(round(seconds * fps), 1)


TEMPORAL_STRIDE = 4


def latent_length(frames: int) -> int:
    """Latent frames that hold so many frames: the first holds one, each further one four."""
    return (frames + TEMPORAL_STRIDE - 2) // TEMPORAL_STRIDE + 1


def frame_length(latents: int) -> int:
    """Frames of a sequence of latents: the first makes one, each further one four."""
    return max((latents - 1) * TEMPORAL_STRIDE + 1, 0)
