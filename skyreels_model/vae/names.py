"""Names of the VAE's weights in every published layout -> in the original checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..files.keys import Rename, T, rename_keys


def _middle(found: re.Match[str]) -> str:
    return f"{found[1]}.middle.{2 * int(found[2])}."


def _up_resnet(found: re.Match[str]) -> str:
    return f"decoder.upsamples.{4 * int(found[1]) + int(found[2])}."


def _upsampler(found: re.Match[str]) -> str:
    return f"decoder.upsamples.{4 * int(found[1]) + 3}."


# Where a layer sits. The original counts the decoder's blocks through all levels: three residual
# blocks and one upsampler each.
_PLACES: tuple[tuple[str, Rename], ...] = (
    (r"quant_conv\.", "conv1."),
    (r"post_quant_conv\.", "conv2."),
    (r"(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"(encoder|decoder)\.mid_block\.attentions\.0\.", r"\1.middle.1."),
    (r"(encoder|decoder)\.mid_block\.resnets\.([01])\.", _middle),
    (r"encoder\.down_blocks\.(\d+)\.", r"encoder.downsamples.\1."),
    (r"decoder\.up_blocks\.(\d+)\.resnets\.([0-2])\.", _up_resnet),
    (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", _upsampler),
)
# What it is called inside a residual block.
_LAYERS = {
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
}


def vae_key_to_original(diffusers_key: str) -> str:
    """Name in `Wan2.1_VAE.pth` of a tensor of diffusers' AutoencoderKLWan.

    Raises ValueError for a name that is not one of AutoencoderKLWan's.
    Source: huggingface/diffusers scripts/convert_wan_to_diffusers.py (the inverse direction).
    """
    for pattern, rename in _PLACES:
        found = re.match(pattern, diffusers_key)
        if found:
            place = found.expand(rename) if isinstance(rename, str) else rename(found)
            layer, dot, leaf = diffusers_key[found.end() :].partition(".")
            return place + _LAYERS.get(layer, layer) + dot + leaf
    raise ValueError(
        f"diffusers_key is {diffusers_key!r}; it must be a tensor of AutoencoderKLWan, whose names "
        "begin with 'encoder.', 'decoder.', 'quant_conv.' or 'post_quant_conv.'"
    )


def rename_diffusers_vae(weights: Mapping[str, T]) -> dict[str, T]:
    """A VAE's weights under the names of `Wan2.1_VAE.pth`, if they have diffusers'; else as is."""
    if "quant_conv.weight" not in weights:
        return dict(weights)
    return rename_keys(weights, vae_key_to_original)


_PREFIXES = ("first_stage_model.", "vae.", "model.")


def to_original_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VAE's tensors under the names of `Wan2.1_VAE.pth`, from every published layout.

    Those layouts are the original's, diffusers', and either with a prefix. A name that none of
    them has stays, so that loading reports it.
    """
    has = [p for p in _PREFIXES if f"{p}encoder.conv1.weight" in state_dict]
    has += [p for p in _PREFIXES if f"{p}encoder.conv_in.weight" in state_dict]
    prefix = has[0] if has else ""
    own = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    return rename_diffusers_vae({k: v for k, v in own.items() if not k.startswith("model_type.")})
