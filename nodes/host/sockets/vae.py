"""Our VAE as the host's VAE: its nodes encode and decode with it, tiled or whole."""

from __future__ import annotations

import contextlib
import logging
import math
import pathlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from ....skyreels_model.files import loading
from ....skyreels_model.grid import CHANNELS, frame_length
from ....skyreels_model.operations import Unfilled
from ....skyreels_model.vae.names import to_original_names
from ....skyreels_model.vae.network import VideoVAE
from ....skyreels_model.vae.tiles import SMALLEST, Side, Tiling
from .. import direct_reads
from .patcher import patcher_type
from .vae_streams import decode_latents, encode_frames, step_bytes

LOG = logging.getLogger("skyreels_v2")
# What to change where any other VAE lacks memory.
OTHER_VAE = (
    "set tile_size, 256 or smaller, make the film smaller (width, height), or load the VAE with "
    "SkyReels-V2 VAE Loader, whose memory does not grow with the film"
)
# What the host says of a VAE: its name for it, ours, and the Wan 2.1 VAE's.
WAN_VAE = (
    ("latent_channels", "latent channels", CHANNELS),
    ("output_channels", "channels of colour", 3),
    ("conv_out_channels", "output channels", 3),
    ("latent_dim", "latent dimensions", 3),
    ("upscale_index_formula", "as strides (frames, height, width)", (4, 8, 8)),
)


@contextlib.contextmanager
def _mute_warning(words: str) -> Iterator[None]:
    """Keep one warning of the host's log, in this thread alone, from being shown."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != thread or words not in record.getMessage()

    log = logging.getLogger()
    log.addFilter(passes)
    try:
        yield
    finally:
        log.removeFilter(passes)


def check_wan_vae(vae: comfy.sd.VAE) -> None:
    """Raise ValueError, naming the input, for a VAE that is not like Wan 2.1's.

    Another one would be taken without an error: of twelve channels three, for instance, as colours.
    """
    for name, what, wanted in WAN_VAE:
        found = getattr(vae, name, None)
        if found is not None and found != wanted:
            raise ValueError(f"vae has {found} {what}; it must be the Wan 2.1 VAE with {wanted}")


class HostVAE(comfy.sd.VAE):
    """The host's VAE around `VideoVAE`.

    Its latents are the raw means; normalising them is the MODEL's latent format's part.
    """

    def __init__(self, model: VideoVAE, dtype: torch.dtype, disable_dynamic: bool) -> None:
        # Without weights the host's constructor sets its version's defaults, warns and stops.
        with _mute_warning("No VAE weights detected"):
            super().__init__(sd={})
        management = comfy.model_management
        self.first_stage_model = model
        self.vae_dtype = dtype
        self.latent_dim, self.latent_channels, self.output_channels = 3, model.z_dim, 3
        self.upscale_ratio = (lambda latents: max(0, latents * 4 - 3), 8, 8)
        self.upscale_index_formula = (4, 8, 8)
        self.downscale_ratio = (lambda frames: max(0, math.floor((frames + 3) / 4)), 8, 8)
        self.downscale_index_formula = (4, 8, 8)
        # Whatever the number of frames: they come as a stream. Without a cycle: a VAE that is
        # dropped frees its memory at once, and does not die while the host walks its models.
        vae = weakref.proxy(self)
        self.memory_used_encode = lambda shape, dtype: step_bytes(
            vae, False, (shape[-2] // 8, shape[-1] // 8)
        )
        self.memory_used_decode = lambda shape, dtype: step_bytes(vae, True, tuple(shape[-2:]))
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

    def decode(self, samples_in: Tensor, vae_options: Any = None) -> Tensor:
        """Latents (B, 16, F, h, w) -> frames (B, T, H, W, 3), in constant memory beside them."""
        return self._decode(samples_in, None)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """As `decode`, in tiles of so many latents; time is a stream and needs no tiles."""
        return self._decode(samples, _convert_tiling(tile_x, tile_y, overlap, 1))

    def _decode(self, samples: Tensor, asked: Tiling | None) -> Tensor:
        frames: Tensor | None = None
        for index, sample in enumerate(samples.split(1)):
            position = 0
            for piece in decode_latents(self, sample, asked=asked):
                if frames is None:
                    shape = (len(samples), frame_length(sample.shape[2]), *piece.shape[1:])
                    frames = piece.new_empty(shape, dtype=self.vae_output_dtype())
                frames[index, position : position + len(piece)] = piece
                position += len(piece)
        assert frames is not None
        return frames

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Frames (T, H, W, C) or (B, T, H, W, C) -> raw latents (B, 16, F, h, w)."""
        return self._encode(pixel_samples, None)

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """As `encode`, in tiles of so many px; time is a stream and needs no tiles."""
        return self._encode(pixel_samples, _convert_tiling(tile_x, tile_y, overlap, 8))

    def _encode(self, pixels: Tensor, asked: Tiling | None) -> Tensor:
        pixels = self.vae_encode_crop_pixels(pixels)
        films = pixels if pixels.ndim == 5 else pixels[None]
        coded = [torch.cat(list(encode_frames(self, film, asked)), dim=2) for film in films]
        return torch.cat(coded).to(self.output_device, self.vae_output_dtype())


def _convert_tiling(
    tile_x: int | None, tile_y: int | None, overlap: int | None, scale: int
) -> Tiling | None:
    """The host's tiles as ours; `scale` of its units are a latent."""
    if not tile_x and not tile_y:
        return None
    columns, rows = (
        max((side or tile_x or tile_y) // scale, SMALLEST) for side in (tile_x, tile_y)
    )
    if overlap is None:
        return Tiling(Side.of(rows), Side.of(columns))
    least = overlap // scale
    return Tiling(Side(rows, min(least, rows // 2)), Side(columns, min(least, columns // 2)))


def load_vae(path: pathlib.Path, disable_dynamic: bool = False) -> tuple[HostVAE, str]:
    """A VAE file as the host's VAE, and one line that says what it is."""
    file = direct_reads.read(path)
    tensors = to_original_names(file.tensors)
    dtypes = [torch.bfloat16, torch.float16, torch.float32]
    dtype = comfy.model_management.vae_dtype(comfy.model_management.vae_device(), dtypes)
    operations = comfy.ops.disable_weight_init
    model = VideoVAE.from_state_dict(tensors, operations, dtype=dtype, device="meta").eval()
    layout = VideoVAE.from_state_dict(tensors, Unfilled, dtype=dtype, device="meta")
    report = loading.load_weights(model, tensors, layout, release=file.release)
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(model)
    vae = HostVAE(model, dtype, disable_dynamic)
    vae.patcher.cached_patcher_init = (load_patcher, (path,))
    stored = loading.stored_dtype(tensors)
    summary = f"Wan 2.1 video VAE, stored {str(stored)[6:]}, used {str(dtype)[6:]}; {report}"
    return vae, file.add_note(summary)


def load_patcher(
    path: pathlib.Path, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of `load_vae`, for the host to build it again."""
    return load_vae(path, disable_dynamic)[0].patcher
