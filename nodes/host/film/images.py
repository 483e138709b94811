"""Given images as a film takes them: three channels, finite, in 0..1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..notice import warn


def open_images(name: str, images: Tensor, count: int | None = None) -> Tensor:
    """An IMAGE (N, H, W, C) as (N, H, W, 3), a view: no transparency, grey in three channels.

    Values outside of 0..1 are only told; whoever brings the images to a film's size clamps them.
    count: how many images there must be. Raises ValueError for another number of them, and for
    values that are not finite.
    """
    if count is not None and len(images) != count:
        raise ValueError(
            f"{name} is a batch of {len(images)} images; it must be {count}: choose it with "
            f"ImageFromBatch"
        )
    if not len(images):
        raise ValueError(f"{name} is a batch without images; connect at least one")
    least, most = 0.0, 1.0
    for number, image in enumerate(images, 1):
        low, high = map(float, torch.aminmax(image))
        if not math.isfinite(low + high):
            raise ValueError(
                f"{name} has numbers in image {number} that are infinite or not a number; the node "
                f"that makes it failed"
            )
        least, most = min(least, low), max(most, high)
    if least < 0 or most > 1:
        warn(
            f"{name} has values from {least:.3g} to {most:.3g}. Images have 0 to 1: what lies "
            f"outside is cut off. Bring them into that range before to keep it."
        )
    return images.expand(-1, -1, -1, 3) if images.shape[-1] == 1 else images[..., :3]
