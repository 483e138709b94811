"""The diffusion transformer."""

from .network import SkyReelsModel

__all__ = [
    "SkyReelsModel",
]
