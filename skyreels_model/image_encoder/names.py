"""Names of CLIP's weights in every published layout -> in the original checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_PREFIX = "visual."
_QUANTISED = re.compile(r"scaled_fp8$|.*\.(scale_weight|scale_input|weight_scale|comfy_quant)$")
_TOP_NAMES = {
    "vision_model.embeddings.class_embedding": "cls_embedding",
    "vision_model.embeddings.patch_embedding.weight": "patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight": "pos_embedding",
    "vision_model.pre_layrnorm.weight": "pre_norm.weight",
    "vision_model.pre_layrnorm.bias": "pre_norm.bias",
    "vision_model.post_layernorm.weight": "post_norm.weight",
    "vision_model.post_layernorm.bias": "post_norm.bias",
    "visual_projection.weight": "head",
}
_BLOCK_NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PROJECTION = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)([qkv])(_proj\..+)")
_NOT_OF_THE_ENCODER = re.compile(
    r"textual\.|log_scale$|text_model\.|text_projection\.|logit_scale$|model_type\.|.*\.position_ids$"
)


def hf_to_original(key: str) -> str | None:
    """The original `.pth` name of a transformers (= ComfyUI) CLIP key, None if it has none.

    The q, k and v projections have none of their own: they are parts of `attn.to_qkv`.
    """
    if key in _TOP_NAMES:
        return _PREFIX + _TOP_NAMES[key]
    match = _BLOCK.fullmatch(key)
    if match and match[2] in _BLOCK_NAMES:
        return f"{_PREFIX}transformer.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"
    return None


def to_original_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors under their original names, from either published layout.

    From transformers' layout q, k and v are joined and the projection is transposed. Left out: the
    text half, and repackagers' `model_type.*` markers. Any other unknown key stays under its own
    name, so that loading reports it.
    Raises ValueError for open_clip's own layout and for quantised files with scales.
    """
    _refuse_other_layouts(state_dict)
    bare = f"{_PREFIX}patch_embedding.weight" not in state_dict and "pos_embedding" in state_dict
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if _NOT_OF_THE_ENCODER.match(key):
            continue
        part, original = _PROJECTION.fullmatch(key), hf_to_original(key)
        if original is not None:
            renamed[original] = _original_shape(original, value)
        elif part is None:
            renamed[_PREFIX + key if bare else key] = value
        elif part[2] == "q":
            parts = [state_dict.get(f"{part[1]}{letter}{part[3]}") for letter in "qkv"]
            layer, leaf = part[1].split(".")[3], part[3].removeprefix("_proj.")
            joined = [p for p in parts if p is not None]
            renamed[f"{_PREFIX}transformer.{layer}.attn.to_qkv.{leaf}"] = torch.cat(joined)
    return renamed


def _original_shape(name: str, value: Tensor) -> Tensor:
    """A tensor of transformers' layout in the shape that the original gives it."""
    if name == "visual.head":
        return value.T
    if name == "visual.cls_embedding":
        return value.reshape(1, 1, -1)
    if name == "visual.pos_embedding":
        return value.reshape(1, *value.shape[-2:])
    return value


def _refuse_other_layouts(keys: Iterable[str]) -> None:
    for key in keys:
        if ".resblocks." in key:
            raise ValueError(
                "the file has open_clip's own key names, which are not read here; "
                "use ComfyUI's 'Load CLIP Vision' for it, or clip_vision_h.safetensors"
            )
        if _QUANTISED.match(key):
            raise ValueError(
                f"the file is quantised with scales (it has {key!r}), which is not "
                f"supported; use an fp16, bf16 or fp32 file"
            )
