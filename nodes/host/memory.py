"""What the host is told that sampling will take, so that it frees as much, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management

from ...skyreels_model.memory import forward_bytes
from ...skyreels_model.rollout import CHANNELS
from ...skyreels_model.tokenizer import MAX_LENGTH

# Latents in float32 that live on the device around a forward, measured with UniPC, which keeps the
# most: those of the film, its solver and the host's guider; and for each prompt in the batch, what
# goes into the forward and comes out of it.
FILM_LATENTS, PROMPT_LATENTS = 10, 4
# They hold the scores of all queries and keys, or as many as the host finds room for.
WITH_SCORES = ("attention_basic", "attention_split", "attention_sub_quad")


def sampling_bytes(
    model: Any, shape: Sequence[int], cond_shapes: Mapping[str, Sequence[Sequence[int]]]
) -> int:
    """Bytes beside the weights for a `HostModel` at work on latents of shape (B, C, F, h, w).

    cond_shapes: of the conditions in the batch, by their names in the model's call.
    """
    config, dtype = model.diffusion_model.config, model.get_dtype_inference()
    itemsize = comfy.model_management.dtype_size(dtype)
    batch, _, frames, height, width = shape
    texts = [text[1] for text in cond_shapes.get("c_crossattn", ())]
    needed = forward_bytes(
        config, batch, frames, height, width, itemsize, max(texts, default=MAX_LENGTH)
    )
    latent = CHANNELS * frames * height * width * 4
    needed += (FILM_LATENTS + PROMPT_LATENTS * batch) * latent
    if model.manual_cast_dtype is not None or model.model_config.custom_operations is not None:
        # One layer at a time is cast, or made numbers, for its product: at the peak one of
        # attention's.
        needed += config.dim**2 * itemsize
    return needed


def holds_scores(call: Any) -> bool:
    """Whether an attention of the host needs memory beyond its inputs and what it returns."""
    return call in [getattr(attention, name, None) for name in WITH_SCORES]
