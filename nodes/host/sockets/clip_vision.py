"""Our CLIP image encoder as the host's CLIP_VISION: CLIPVisionEncode works with it."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import comfy.clip_vision
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import torch
from torch import Tensor

from ....skyreels_model.files import loading
from ....skyreels_model.image_encoder.config import CLIPVisionConfig
from ....skyreels_model.image_encoder.memory import forward_bytes
from ....skyreels_model.image_encoder.names import to_original_names
from ....skyreels_model.image_encoder.network import CLIPVision
from ....skyreels_model.image_encoder.pixels import preprocess, squash
from ....skyreels_model.operations import Unfilled
from .. import direct_reads
from .memory import try_alone
from .patcher import patcher_type

# What to change where the image encoder alone lacks memory.
WITHOUT_ROOM = (
    "Close what else uses the memory, or leave clip_vision unconnected: the film then follows the "
    "image less closely"
)
COMPUTE = torch.float32  # as the host's own, whatever the weights are stored in


def take_raw_parameters_along(patcher: comfy.model_patcher.ModelPatcher, *_how: object) -> None:
    """Let numbers that are no layer's own leave the device with the rest.

    Those of a module that has layers, such as the positions, the host's dynamic patcher brings
    there, and leaves there.
    """
    for parameter in patcher.model.visual.parameters(recurse=False):
        parameter.data = parameter.data.to(patcher.offload_device)


class HostCLIPVision:
    """What the host expects on a CLIP_VISION socket, around `CLIPVision`."""

    def __init__(self, model: CLIPVision, disable_dynamic: bool) -> None:
        management = comfy.model_management
        self.model, self.image_size = model, model.config.image_size
        self.load_device = management.text_encoder_device()
        self.patcher = patcher_type(disable_dynamic)(
            model,
            load_device=self.load_device,
            offload_device=management.text_encoder_offload_device(),
        )
        detached = comfy.patcher_extension.CallbacksMP.ON_DETACH
        self.patcher.add_callback(detached, take_raw_parameters_along)

    def get_sd(self) -> dict[str, Tensor]:
        return self.model.state_dict()

    def memory_required(self, shape: Sequence[int]) -> int:
        """Bytes that encoding images (B, H, W, C) takes beside the weights."""
        config, dtype = self.model.config, next(self.model.parameters()).dtype
        batch, height, width = shape[:3]
        given, seen = (
            3 * batch * n * COMPUTE.itemsize for n in (height * width, config.image_size**2)
        )
        encoding = forward_bytes(config, batch, COMPUTE.itemsize, casts=dtype != COMPUTE)
        # Preparing them makes two more, of the size that the encoder sees.
        return max(given + 3 * seen, seen + encoding)

    def encode_image(self, image: Tensor, crop: bool = True) -> comfy.clip_vision.Output:
        """Features of images (B, H, W, C) in 0..1; `crop` cuts out the middle square first."""
        needed = self.memory_required(image.shape)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)
        pixels = image[..., :3].movedim(-1, 1).to(self.load_device, COMPUTE)  # (B, 3, H, W)
        if crop:
            side = min(pixels.shape[2:])
            top, left = ((size - side) // 2 for size in pixels.shape[2:])
            pixels = pixels[:, :, top : top + side, left : left + side]
        pixels = preprocess(pixels, self.image_size)
        features = self.model(pixels)  # (B, N, D)
        last, embedding = self.model.pool(features)
        device = comfy.model_management.intermediate_device()
        out = comfy.clip_vision.Output()
        out["penultimate_hidden_states"] = features.to(device)
        out["last_hidden_state"] = last.to(device)
        out["image_embeds"] = embedding.to(device)
        out["image_sizes"] = [pixels.shape[1:]] * len(pixels)
        out["mm_projected"] = None
        return out


ImageEncoder = HostCLIPVision | comfy.clip_vision.ClipVisionModel


def load_clip_vision(
    path: pathlib.Path, disable_dynamic: bool = False
) -> tuple[HostCLIPVision, str]:
    """An image encoder file as the host's CLIP_VISION, and one line that says what it is."""
    file = direct_reads.read(path)
    tensors = to_original_names(file.tensors)
    config, dtype = CLIPVisionConfig.from_state_dict(tensors), loading.stored_dtype(tensors)
    model = CLIPVision(config, comfy.ops.manual_cast, dtype=dtype, device="meta").eval()
    layout = CLIPVision(config, Unfilled, dtype=dtype, device="meta")
    report = loading.load_weights(model, tensors, layout)
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(model)
    clip_vision = HostCLIPVision(model, disable_dynamic)
    clip_vision.patcher.cached_patcher_init = (load_patcher, (path,))
    summary = (
        f"CLIP image encoder of width {config.dim}, {config.num_layers} layers, "
        f"{config.num_positions} tokens an image, stored {str(dtype)[6:]}; {report}"
    )
    return clip_vision, file.add_note(summary)


def load_patcher(
    path: pathlib.Path, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of `load_clip_vision`, for the host to build it again."""
    return load_clip_vision(path, disable_dynamic)[0].patcher


def encode_squashed(clip_vision: ImageEncoder, image: Tensor) -> comfy.clip_vision.Output:
    """Features of a picture (H, W, 3) in 0..1 as the I2V models were trained to see it.

    Squashed here, so that the host's own encoder neither crops nor antialiases it.
    """
    squashed = squash(image.movedim(-1, 0)[None], clip_vision.image_size)  # (1, 3, S, S)
    return try_alone(
        "image encoder",
        WITHOUT_ROOM,
        lambda: clip_vision.encode_image(squashed.movedim(1, -1), crop=False),
    )
