"""What kind of model file a set of tensors is, told from key names, for error messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

Rename = str | Callable[[re.Match[str]], str]
Rules = tuple[tuple[str, str], ...]
T = TypeVar("T")


def rename_keys(weights: Mapping[str, T], rename: Callable[[str], str]) -> dict[str, T]:
    """With the names that `rename` gives, or their own where it knows none (and raises ValueError).

    Raises ValueError where two would have one name.
    """
    named: dict[str, T] = {}
    for key, value in weights.items():
        try:
            name = rename(key)
        except ValueError:
            name = key
        if name in named:
            raise ValueError(f"the file has {name} twice, the second time as {key}")
        named[name] = value
    return named


# What PyTorch's own wrappers (data parallel, sharded, compiled, checkpointed) put between names.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


def unwrap_keys(weights: Mapping[str, T]) -> dict[str, T]:
    """The weights without the wrappers that a trainer left in their names.

    Raises ValueError where two would have one name.
    """
    return rename_keys(weights, lambda key: _WRAPPERS.sub("", key))


WAN22_VAE_MARK = "decoder.upsamples.0.upsamples.0.residual.2.weight"

# Ordered: the first pattern found in any key names the file.
KINDS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"lora_(up|down|A|B)\b", "a LoRA"),
        (r"^(visual|vision_model)\.", "a CLIP image encoder"),
        (
            r"^(condition_embedder|blocks\.\d+\.attn1)\.",
            "a diffusion transformer with diffusers key names",
        ),
        (
            r"(^|\.)patch_embedding\.weight$|blocks\.\d+\.self_attn\.",
            "a diffusion transformer (DiT) of the Wan family",
        ),
        (
            r"^(model\.diffusion_model\.)?(double_blocks|joint_blocks|input_blocks)\.",
            "another diffusion model",
        ),
        (rf"^{re.escape(WAN22_VAE_MARK)}$", "a Wan 2.2 VAE"),
        (
            r"^(post_)?quant_conv\.|^(encoder|decoder)\.mid_block\.",
            "a VAE with diffusers key names",
        ),
        (r"^(encoder|decoder)\.mid\.block_1\.", "an image VAE (Stable Diffusion or Flux)"),
        (r"^(encoder|decoder)\.(conv1|middle|head)\.", "a Wan 2.1 VAE, or a part of one"),
        (r"^(first_stage_model|vae)\.", "a VAE whose tensors still carry a prefix"),
        (
            r"^spiece_model$|encoder\.block\.\d+\.layer|^token_embedding\.weight$",
            "a text encoder (T5 family)",
        ),
        (r"(^|\.)text_model\.", "a CLIP text encoder"),
    )
)


def looks_like(keys: Iterable[str]) -> str:
    """A short guess at what these tensors are, such as "a LoRA"."""
    keys = list(keys)
    for pattern, kind in KINDS:
        if any(pattern.search(key) for key in keys):
            return kind
    return "no model file known here"
