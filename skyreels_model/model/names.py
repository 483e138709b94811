"""Names of tensors in diffusers' files -> in the original checkpoints.

`AutoencoderKLWan` -> `Wan2.1_VAE.pth`, `SkyReelsV2Transformer3DModel` -> SkyReels-V2's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..files.gguf import require_architecture
from ..files.keys import Rules, T, rename_keys
from ..files.quantized import QuantizedWeight, Weights, gather_scales

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
MARKER = "model_type."
_FIRST = "patch_embedding.weight"


def transformer_tensors(
    tensors: Weights, metadata: Mapping[str, str] | None = None
) -> dict[str, Tensor | QuantizedWeight]:
    """A diffusion model's weights under their original names, from every published layout.

    Prefixes and markers are removed, diffusers' names translated, and weights with scales put
    together with them. What has not the prefix (`other_tensors`) is left out. Raises ValueError
    for scales that cannot be read, and for a GGUF file that says it is of another architecture and
    has none of the tensors.
    """
    prefix = _prefix(tensors)
    if f"{prefix}{_FIRST}" not in tensors:
        require_architecture(metadata or {}, "wan")
    own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    own = {k: v for k, v in own.items() if not k.startswith(MARKER)}
    return rename_diffusers_transformer(gather_scales(own, metadata or {}, prefix))


def other_tensors(tensors: Weights) -> list[str]:
    """Names of what a file holds beside a diffusion model, such as a VAE."""
    prefix = _prefix(tensors)
    return sorted(k for k in tensors if not k.startswith((prefix, MARKER)))


def _prefix(tensors: Weights) -> str:
    """What stands before all names of a transformer: a published prefix, or any other."""
    found = [p for p in ("", *PREFIXES) if f"{p}{_FIRST}" in tensors]
    found += [
        prefix
        for prefix in (key.removesuffix(_FIRST) for key in tensors if key.endswith(f".{_FIRST}"))
        if any(key.startswith(f"{prefix}blocks.0.") for key in tensors)
    ]
    return found[0] if found else ""


# Ordered: the first rule whose pattern is found at the start of a key, or of what follows the
# block's number in it, renames it.
_TRANSFORMER: Rules = (
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
_TRANSFORMER_BLOCK: Rules = (
    ("scale_shift_table", "modulation"),
    # diffusers counts the norms in the order of use, the original does not.
    ("norm2.", "norm3."),
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
)
_TRANSFORMER_ATTENTION: Rules = (
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
        f"diffusers_key is {diffusers_key!r}; it must be a tensor of SkyReelsV2Transformer3DModel"
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
    raise ValueError(
        f"original_key is {original_key!r}; it must be a tensor of SkyReels-V2's transformer"
    )


def rename_diffusers_transformer(weights: Mapping[str, T]) -> dict[str, T]:
    """A transformer's weights under their original names, if they have diffusers'; else as is.

    A name that neither has stays, so that loading reports it. Left out is `norm_added_q`, which
    some of diffusers' I2V files hold, and no model uses.
    """
    if not any(key.startswith("condition_embedder.") for key in weights):
        return dict(weights)
    used = {key: value for key, value in weights.items() if ".norm_added_q." not in key}
    return rename_keys(used, transformer_key_to_original)
