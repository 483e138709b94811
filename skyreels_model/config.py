"""The transformer's sizes, under their public name."""

from .model.config import CLIP_DIM, HEAD_DIM, ModelConfig

__all__ = ["CLIP_DIM", "HEAD_DIM", "ModelConfig"]
