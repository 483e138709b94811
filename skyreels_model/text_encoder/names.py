"""Names of UMT5's weights in every published layout -> in the original checkpoint."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from ..files.gguf import require_architecture
from ..files.keys import looks_like, rename_keys
from ..files.quantized import QuantizedWeight, Weights, gather_scales

_BLOCK_NAMES = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
# Names in GGUF files (llama.cpp's, of its architecture "t5encoder").
_GGUF_BLOCK_NAMES = {
    "attn_norm": "norm1",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_o": "attn.o",
    "attn_rel_b": "pos_embedding.embedding",
    "ffn_norm": "norm2",
    "ffn_gate": "ffn.gate.0",
    "ffn_up": "ffn.fc1",
    "ffn_down": "ffn.fc2",
}
_TOP_NAMES = {
    "token_embd.weight": "token_embedding.weight",
    "enc.output_norm.weight": "norm.weight",
    "shared.weight": "token_embedding.weight",
    "encoder.embed_tokens.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
}
_NOT_OF_THE_ENCODER = re.compile(r"spiece_model$|decoder\.|lm_head\.|model_type\.")
EMBEDDINGS = (
    "token_embedding.weight",
    *(key for key, name in _TOP_NAMES.items() if "embed" in name),
)
_ARCHITECTURES = ("t5encoder", "t5")


def hf_to_original(key: str) -> str | None:
    """The original `.pth` name of a key in transformers' (= ComfyUI's) or GGUF's naming, or None.

    `shared.weight` and the tied `encoder.embed_tokens.weight` have the same original name.
    """
    if key in _TOP_NAMES:
        return _TOP_NAMES[key]
    for pattern, names in (
        (r"encoder\.block\.(\d+)\.(.+)\.weight", _BLOCK_NAMES),
        (r"enc\.blk\.(\d+)\.(.+)\.weight", _GGUF_BLOCK_NAMES),
    ):
        match = re.fullmatch(pattern, key)
        if match and match[2] in names:
            return f"blocks.{match[1]}.{names[match[2]]}.weight"
    return None


def to_original_names(
    state_dict: Weights, metadata: Mapping[str, str] | None = None
) -> dict[str, Tensor | QuantizedWeight]:
    """The encoder's weights under their original names, from every published layout.

    Weights with scales are put together with them (`quantized.gather_scales`). Left out: the
    embedded tokenizer `spiece_model` (give it to `tokenizer.Tokenizer`), a decoder and its head,
    repackagers' `model_type.*` markers. Any other unknown key stays under its own name, so that a
    strict load reports it. Raises ValueError for another kind of model.
    """
    if not any(name in state_dict for name in EMBEDDINGS):
        require_architecture(metadata or {}, *_ARCHITECTURES)
    refuse_other_files(state_dict)
    own = {k: v for k, v in state_dict.items() if not _NOT_OF_THE_ENCODER.match(k)}
    if "shared.weight" in own:
        own.pop("encoder.embed_tokens.weight", None)  # the same, tied
    weights = gather_scales(own, metadata or {})
    return rename_keys(weights, lambda key: hf_to_original(key) or key)


def refuse_other_files(keys: Collection[str]) -> None:
    """Raise ValueError if these are the keys of another kind of model."""
    if not any(name in keys for name in EMBEDDINGS):
        raise ValueError(
            f"the file looks like {looks_like(keys)}; a UMT5 encoder is needed, such "
            "as models_t5_umt5-xxl-enc-bf16.pth"
        )


def refuse_incomplete(keys: Weights) -> None:
    """Raise ValueError unless every tensor of a UMT5 encoder is there under its original name."""
    if any(hf_to_original(key) for key in keys):
        raise ValueError(
            "the file has transformers' key names, original names are needed here; "
            "pass it through to_original_names first"
        )
    needed = {"token_embedding.weight", "norm.weight"}
    # No more blocks than keys, whatever number one of them may name.
    for index in range(max(1, min(count_blocks(keys), len(keys)))):
        needed |= {f"blocks.{index}.{name}.weight" for name in _BLOCK_NAMES.values()}
    missing = sorted(needed - keys.keys())
    if not missing:
        return
    biases = [key for key in missing if "pos_embedding" in key]
    if biases == missing and "blocks.0.pos_embedding.embedding.weight" in keys:
        raise ValueError(
            "the file looks like plain T5 (a position bias in its first layer only), "
            "UMT5 has one in every layer; use a umt5-xxl file"
        )
    raise ValueError(
        f"{len(missing)} of {len(needed)} tensors of a UMT5 encoder are missing, "
        f"the first is '{missing[0]}'; the file has {len(keys)} keys: {sorted(keys)[:3]}"
    )


def count_blocks(keys: Iterable[str]) -> int:
    matches = (re.match(r"blocks\.(\d+)\.", key) for key in keys)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
