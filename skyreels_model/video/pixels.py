"""Frames in 0..1 as FFmpeg's pixels, rounded to the nearest level."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

# FFmpeg's numbers for what HD has: BT.709, from black at 16 to white at 235.
BT709, LIMITED = 1, 1
PLANES = "gbrp10le"  # red, green and blue on their own, with 10 bits each


def to_levels(frames: Tensor, most: int) -> np.ndarray:
    """Frames in 0..1 as whole numbers from 0 to `most`, in 8 or 16 bits."""
    levels = (frames.float() * most).round().clamp(0, most).cpu()
    kind = np.uint8 if most < 256 else np.uint16
    return np.ascontiguousarray(levels.numpy().astype(kind))


def make_frames(frames: Tensor, pixels: str) -> Iterator[Any]:
    """FFmpeg's frames of frames (n, H, W, 3) in 0..1, in the format `pixels`."""
    import av

    deep = "10" in pixels or "48" in pixels
    for frame in frames.split(1):
        image = frame[0]
        if pixels == PLANES:
            yield av.VideoFrame.from_ndarray(to_levels(image, 1023), format=PLANES)
            continue
        levels = to_levels(image, 65535 if deep else 255)
        made = av.VideoFrame.from_ndarray(levels, format="rgb48le" if deep else "rgb24")
        colours = (
            {"dst_colorspace": BT709, "dst_color_range": LIMITED}
            if pixels.startswith("yuv")
            else {}
        )
        yield made.reformat(format=pixels, **colours)
