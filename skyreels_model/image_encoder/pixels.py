"""Images as CLIP was trained to see them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def squash(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) of any aspect to (B, 3, size, size), as the I2V models were trained.

    Bicubic, neither cropped nor antialiased, hence not clamped: values may overshoot.
    Source: SkyworkAI/SkyReels-V2, `skyreels_v2_infer/modules/clip.py`.
    """
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)


def preprocess(images: Tensor, size: int = 224) -> Tensor:
    """What the encoder sees of images (B, 3, H, W) in 0..1: squashed, then CLIP's mean and std."""
    images = squash(images, size)  # (B, 3, size, size)
    mean, std = images.new_tensor((IMAGE_MEAN, IMAGE_STD))[:, None, :, None, None]
    return (images - mean) / std
