"""Names of tensors in diffusers' files -> in the original checkpoints.

`AutoencoderKLWan` -> `Wan2.1_VAE.pth`, `SkyReelsV2Transformer3DModel` -> SkyReels-V2's own.
"""

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

_Rename = str | Callable[[re.Match[str]], str]
_Rules = tuple[tuple[str, str], ...]
_T = TypeVar("_T")


def _middle(found: re.Match[str]) -> str:
    return f"{found[1]}.middle.{2 * int(found[2])}."


def _up_resnet(found: re.Match[str]) -> str:
    return f"decoder.upsamples.{4 * int(found[1]) + int(found[2])}."


def _upsampler(found: re.Match[str]) -> str:
    return f"decoder.upsamples.{4 * int(found[1]) + 3}."


# Where a layer sits. The original counts the decoder's blocks through all levels: three residual
# blocks and one upsampler each.
_PLACES: tuple[tuple[str, _Rename], ...] = (
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
        f"diffusers_key: {diffusers_key!r} is not a tensor of AutoencoderKLWan; its names begin "
        "with 'encoder.', 'decoder.', 'quant_conv.' or 'post_quant_conv.'"
    )


# Ordered: the first rule whose pattern is found at the start of a key, or of what follows the
# block's number in it, renames it.
_TRANSFORMER: _Rules = (
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.0."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.2."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
    ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
    ("fps_projection.net.0.proj.", "fps_projection.0."),
    ("fps_projection.net.2.", "fps_projection.2."),
    ("fps_embedding.", "fps_embedding."),
    ("patch_embedding.", "patch_embedding."),
    ("scale_shift_table", "head.modulation"),
    ("proj_out.", "head.head."),
)
_TRANSFORMER_BLOCK: _Rules = (
    ("scale_shift_table", "modulation"),
    # diffusers counts the norms in the order of use, the original does not.
    ("norm2.", "norm3."),
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
)
_TRANSFORMER_ATTENTION: _Rules = (
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "o."),
    ("norm_q.", "norm_q."),
    ("norm_k.", "norm_k."),
    ("add_k_proj.", "k_img."),
    ("add_v_proj.", "v_img."),
    ("norm_added_k.", "norm_k_img."),
)
_ATTENTION = {"attn1": "self_attn", "attn2": "cross_attn"}


def transformer_key_to_original(diffusers_key: str) -> str:
    """Name in SkyReels-V2's checkpoints of a tensor of diffusers' SkyReelsV2Transformer3DModel.

    Raises ValueError for a name that is not one of its own.
    Source: huggingface/diffusers scripts/convert_skyreelsv2_to_diffusers.py (the inverse).
    """
    place, rest, rules = "", diffusers_key, _TRANSFORMER
    block = re.match(r"blocks\.\d+\.", diffusers_key)
    if block:
        place, rest, rules = block[0], diffusers_key[block.end() :], _TRANSFORMER_BLOCK
        attention = re.match(r"(attn1|attn2)\.", rest)
        if attention:
            place += _ATTENTION[attention[1]] + "."
            rest, rules = rest[attention.end() :], _TRANSFORMER_ATTENTION
    for old, new in rules:
        if rest.startswith(old):
            return place + new + rest[len(old) :]
    raise ValueError(
        f"diffusers_key: {diffusers_key!r} is not a tensor of SkyReelsV2Transformer3DModel"
    )


def transformer_key_to_diffusers(original_key: str) -> str:
    """The inverse of `transformer_key_to_original`; ValueError for a name that has none."""
    place, rest, rules = "", original_key, _TRANSFORMER
    block = re.match(r"blocks\.\d+\.", original_key)
    if block:
        place, rest, rules = block[0], original_key[block.end() :], _TRANSFORMER_BLOCK
        attention = re.match(r"(self_attn|cross_attn)\.", rest)
        if attention:
            place += {"self_attn": "attn1.", "cross_attn": "attn2."}[attention[1]]
            rest, rules = rest[attention.end() :], _TRANSFORMER_ATTENTION
    for new, old in rules:
        if rest.startswith(old):
            return place + new + rest[len(old) :]
    raise ValueError(f"original_key: {original_key!r} is not a tensor of SkyReels-V2's transformer")


def rename_diffusers_transformer(weights: Mapping[str, _T]) -> dict[str, _T]:
    """A transformer's weights under their original names, if they have diffusers'; else as is.

    A name that neither has stays, so that loading reports it. Left out is `norm_added_q`, which
    some of diffusers' I2V files hold, and no model uses.
    """
    if not any(key.startswith("condition_embedder.") for key in weights):
        return dict(weights)
    used = {key: value for key, value in weights.items() if ".norm_added_q." not in key}
    return renamed(used, transformer_key_to_original)


def rename_diffusers_vae(weights: Mapping[str, _T]) -> dict[str, _T]:
    """A VAE's weights under the names of `Wan2.1_VAE.pth`, if they have diffusers'; else as is."""
    if "quant_conv.weight" not in weights:
        return dict(weights)
    return renamed(weights, vae_key_to_original)


def renamed(weights: Mapping[str, _T], rename: Callable[[str], str]) -> dict[str, _T]:
    """With the names that `rename` gives, or their own where it knows none (and raises ValueError).

    Raises ValueError where two would have one name.
    """
    named: dict[str, _T] = {}
    for key, value in weights.items():
        try:
            name = rename(key)
        except ValueError:
            name = key
        if name in named:
            raise ValueError(f"the file has {name} twice, the second time as {key}")
        named[name] = value
    return named
