"""CLIP: a picture to the tokens that image-to-video models read."""

from .config import CLIPVisionConfig
from .names import hf_to_original, to_original_names
from .network import CLIPVision
from .pixels import preprocess, squash

__all__ = [
    "CLIPVision",
    "CLIPVisionConfig",
    "hf_to_original",
    "preprocess",
    "squash",
    "to_original_names",
]
