"""A start image in the conditioning, under the names that the host's Wan models look for."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sd
import node_helpers
import torch
from torch import Tensor

from ....skyreels_model.framing import fit_image
from ....skyreels_model.grid import CHANNELS, frame_length
from ....skyreels_model.model.config import CLIP_DIM
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.rollout.parts import one_window
from ..sockets.clip_vision import ImageEncoder, encode_squashed
from ..sockets.latent import make_latent
from ..sockets.memory import explain_lack, require_ram
from ..sockets.vae import OTHER_VAE, check_wan_vae
from .images import open_images

GREY = 0.5  # zero for the VAE, which codes -1..1


def image_to_video(
    positive: list[Any],
    negative: list[Any],
    vae: comfy.sd.VAE,
    start_image: Tensor,
    size: FilmPlan,
    clip_vision: ImageEncoder | None,
    fit: str,
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Both conditionings with the start image in them, and an empty LATENT of the film's size.

    As the reference does: the image, then grey frames, are encoded as one film. Raises ValueError,
    before that work, on inputs that cannot go together.
    """
    check_wan_vae(vae)
    (given,) = open_images("start_image", start_image, 1)
    count = frame_length(size.latent_frames)
    require_ram(
        f"frames is {size.num_frames} at {size.width} x {size.height}, which",
        # The frames, and their copy on the way to the VAE.
        2 * count * size.width * size.height * 3 * 4,
        "make the film shorter or smaller (frames, width, height)",
    )
    image = fit_image(given, size.width, size.height, fit)  # (H, W, 3)
    values: dict[str, Any] = {}
    if clip_vision is not None:
        values["clip_vision_output"] = encode_squashed(clip_vision, image)
        check_features(values["clip_vision_output"].penultimate_hidden_states)
    frames = torch.full((count, *image.shape), GREY)
    frames[0] = image
    with explain_lack("VAE encode", OTHER_VAE):
        values["concat_latent_image"] = vae.encode(frames)
    # 1 is to be made, 0 is given; the host turns it round for the model.
    mask = torch.ones(1, 1, size.latent_frames, *size.latent_size)
    mask[:, :, 0] = 0
    values["concat_mask"] = mask
    empty = torch.zeros(
        (1, CHANNELS, size.latent_frames, *size.latent_size),
        device=comfy.model_management.intermediate_device(),
    )
    with_image = node_helpers.conditioning_set_values
    latent = make_latent(empty, one_window(empty))
    return with_image(positive, values), with_image(negative, values), latent


def check_features(features: Tensor) -> None:
    if features.shape[-1] != CLIP_DIM:
        raise ValueError(
            f"clip_vision gives features of width {features.shape[-1]}; I2V models take "
            f"{CLIP_DIM}: use their image encoder, CLIP ViT-H (clip_vision_h.safetensors)"
        )
