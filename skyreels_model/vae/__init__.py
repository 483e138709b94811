"""The Wan 2.1 video VAE: frames to latents and back, as streams."""

from .network import (
    LATENT_MEAN,
    LATENT_STD,
    DecodeStream,
    EncodeStream,
    VideoVAE,
    denormalize_latents,
    normalize_latents,
)

__all__ = [
    "DecodeStream",
    "EncodeStream",
    "LATENT_MEAN",
    "LATENT_STD",
    "VideoVAE",
    "denormalize_latents",
    "normalize_latents",
]
