"""Our VAE as the host's VAE: its nodes encode and decode with it, tiled or whole."""

from __future__ import annotations

import logging
import math
import pathlib

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from ...skyreels_model import checkpoint
from ...skyreels_model.vae import VideoVAE
from ...skyreels_model.vae_config import to_original_names
from .model import patcher_type

LOG = logging.getLogger("skyreels_v2")


class HostVAE(comfy.sd.VAE):
    """The host's VAE around `VideoVAE`.

    Its latents are the raw means; normalising them is the MODEL's latent format's part.
    """

    def __init__(self, model: VideoVAE, dtype: torch.dtype, disable_dynamic: bool) -> None:
        # Without weights the host's constructor sets its version's defaults, warns and stops.
        logging.disable(logging.WARNING)
        try:
            super().__init__(sd={})
        finally:
            logging.disable(logging.NOTSET)
        management = comfy.model_management
        self.first_stage_model = model
        self.vae_dtype = dtype
        self.latent_dim, self.latent_channels, self.output_channels = 3, model.z_dim, 3
        self.upscale_ratio = (lambda latents: max(0, latents * 4 - 3), 8, 8)
        self.upscale_index_formula = (4, 8, 8)
        self.downscale_ratio = (lambda frames: max(0, math.floor((frames + 3) / 4)), 8, 8)
        self.downscale_index_formula = (4, 8, 8)
        self.memory_used_encode = lambda shape, dtype: _memory(6000, shape, dtype)
        self.memory_used_decode = lambda shape, dtype: _memory(7000 * 64, shape, dtype)
        self.device = management.vae_device()
        self.output_device = management.intermediate_device()
        self.patcher = patcher_type(disable_dynamic)(
            model, load_device=self.device, offload_device=management.vae_offload_device()
        )
        self.model_size()

    def vae_encode_crop_pixels(self, pixels: Tensor) -> Tensor:
        """The host's cropping to legal sizes, (…, F, H, W, C), for the number of frames, too."""
        pixels = super().vae_encode_crop_pixels(pixels)
        frames = pixels.shape[-4]
        legal = (frames - 1) // 4 * 4 + 1
        if legal != frames:
            LOG.warning("VAE encode: of %d frames the first %d (4k + 1) are used.", frames, legal)
            pixels = pixels.narrow(-4, 0, legal)
        return pixels


def _memory(per_position: int, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of activations: they do not grow with the frames, which come as a stream."""
    return per_position * shape[3] * shape[4] * comfy.model_management.dtype_size(dtype)


def load_vae(path: pathlib.Path, disable_dynamic: bool = False) -> tuple[HostVAE, str]:
    """A VAE file as the host's VAE, and one line that says what it is."""
    file = checkpoint.read(path)
    tensors = to_original_names(file.tensors)
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    dtype = comfy.model_management.vae_dtype(comfy.model_management.vae_device(), dtypes)
    operations = comfy.ops.disable_weight_init
    model = VideoVAE.from_state_dict(tensors, operations, dtype=dtype, device="meta").eval()
    layout = VideoVAE.from_state_dict(tensors, dtype=dtype, device="meta")
    report = checkpoint.load_weights(model, tensors, layout, release=file.release)
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(model)
    vae = HostVAE(model, dtype, disable_dynamic)
    vae.patcher.cached_patcher_init = (load_patcher, (path,))
    stored = checkpoint.stored_dtype(tensors)
    return vae, (f"Wan 2.1 video VAE, stored {str(stored)[6:]}, used {str(dtype)[6:]}; {report}")


def load_patcher(
    path: pathlib.Path, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of `load_vae`, for the host to build it again."""
    return load_vae(path, disable_dynamic)[0].patcher
