"""Pictures as Qwen's vision tower reads them: resized, normalised, in patches.

Source: the published Qwen2-VL image and video processors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
LEAST, MOST = 56 * 56, 1280 * 28 * 28  # pixels of a picture
CLIP_LEAST, CLIP_MOST = 128 * 28 * 28, 768 * 28 * 28  # pixels of a clip's frame
MOST_ASPECT = 200


@dataclass(frozen=True)
class Patching:
    """How a vision tower cuts pictures: side of a patch, patches merged a side, frames a patch."""

    patch: int = 14
    merge: int = 2
    frames: int = 2

    @property
    def merged(self) -> int:
        """Patches that become one token."""
        return self.merge**2


def fit_size(height: int, width: int, unit: int, least: int, most: int) -> tuple[int, int]:
    """The nearest size in whole units, of least to most pixels, of about the same shape.

    Raises ValueError for pictures more than 200 times as long as wide.
    """
    if max(height, width) > MOST_ASPECT * min(height, width):
        raise ValueError(
            f"pictures is of size {width} x {height}; it must be at most {MOST_ASPECT} times as "
            f"long as wide"
        )
    fitted = [round(side / unit) * unit for side in (height, width)]
    pixels = fitted[0] * fitted[1]
    if pixels > most:
        shrink = math.sqrt(height * width / most)
        fitted = [max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width)]
    elif pixels < least:
        grow = math.sqrt(least / (height * width))
        fitted = [math.ceil(side * grow / unit) * unit for side in (height, width)]
    return fitted[0], fitted[1]


def cut_patches(pictures: Tensor, is_clip: bool, how: Patching) -> tuple[Tensor, list[list[int]]]:
    """Pictures (n, H, W, 3) as rows of patches, and the grid of each: frames, rows, columns.

    A clip is one grid, of pairs of frames. A picture alone is a pair of itself.
    Rows: (patches, 3 * frames * patch * patch), float32.
    """
    least, most = (CLIP_LEAST, CLIP_MOST) if is_clip else (LEAST, MOST)
    given, unit = pictures.shape[1:3], how.patch * how.merge
    height, width = fit_size(given[0], given[1], unit, least, most)
    floats = pictures.float() / 255 if pictures.dtype == torch.uint8 else pictures.float()
    images = floats.movedim(-1, 1)  # (n, 3, H, W)
    if images.shape[2:] != (height, width):
        images = functional.interpolate(images, (height, width), mode="bicubic", antialias=True)
    mean, deviation = (torch.tensor(x)[:, None, None] for x in (MEAN, DEVIATION))
    images = (images.clamp(0, 1) - mean) / deviation
    if is_clip:
        short = -len(images) % how.frames
        images = torch.cat([images, images[-1:].expand(short, -1, -1, -1)])
        grids = [[len(images) // how.frames, height // how.patch, width // how.patch]]
    else:
        images = images.repeat_interleave(how.frames, 0)
        grids = [[1, height // how.patch, width // how.patch]] * len(pictures)
    return _rows(images, how), grids


def _rows(images: Tensor, how: Patching) -> Tensor:
    """Frames (n, 3, H, W) to rows; patches that merge stand together."""
    count, channels, height, width = images.shape
    side = how.patch * how.merge
    shape = [count // how.frames, how.frames, channels]
    shape += [height // side, how.merge, how.patch, width // side, how.merge, how.patch]
    # (t, frames, 3, rows, merge, patch, columns, merge, patch)
    split = images.reshape(shape).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return split.reshape(-1, channels * how.frames * how.patch**2)
