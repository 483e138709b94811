"""Which language models are known, and their sizes, from a config or from weights."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..files.packed import import_bitsandbytes
from . import chat

KNOWN = "Qwen2.5, Qwen2.5-VL (also SkyCaptioner-V1) or Qwen3"
LARGEST_TIED = 2560  # width of the largest model that writes with its embedding
_CONTEXT = 32768  # tokens of every published model
# Who packs weights in a way that is read here; of compressed-tensors what has a scale for a row.
_READ = ("bitsandbytes", "compressed-tensors", "fp8", "quanto")


@dataclass(frozen=True)
class Family:
    """A kind of model: its classes in transformers, what its turns begin with."""

    name: str
    config: str
    network: str
    system: str = ""
    opening: str = ""
    sees: bool = False


FAMILIES = {
    "qwen2": Family("Qwen2.5", "Qwen2Config", "Qwen2ForCausalLM", chat.QWEN2_5),
    "qwen3": Family("Qwen3", "Qwen3Config", "Qwen3ForCausalLM", opening=chat.NO_THOUGHT),
    "qwen2_5_vl": Family(
        "Qwen2.5-VL",
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        chat.QWEN2_5_VL,
        sees=True,
    ),
}


def shorten(key: str) -> str:
    """A weight's name without what versions of transformers and repackagers put before it."""
    for prefix in ("model.", "language_model.", "model."):
        key = key.removeprefix(prefix)
    return key


def read_config(
    folder: pathlib.Path, weights: Mapping[str, Any]
) -> tuple[Family, dict[str, Any]] | None:
    """What a folder's config.json says; None where it has none.

    weights: under short names. Raises ValueError for other models, for weights of another size,
    and for those that only another library reads.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        kind = values.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"its config.json cannot be read: {error}") from error
    if kind not in FAMILIES:
        raise ValueError(f"its config.json names a {kind!r} model; it must be {KNOWN}")
    _require_readable(values.get("quantization_config"))
    said = (values.get("text_config") or values).get("num_hidden_layers")
    found = _count(weights, "layers.")
    if said != found:
        raise ValueError(
            f"its config.json says {said} layers, its weights have {found} (is a shard missing, or "
            f"are they of two models?)"
        )
    return FAMILIES[kind], values


def _require_readable(packing: Any) -> None:
    """ValueError for weights that only another library unpacks."""
    packing = packing if isinstance(packing, Mapping) else {}
    method = packing.get("quant_method")
    # AWQ's and GPTQ's order of numbers, under another roof.
    if packing.get("format") in ("pack-quantized", "nvfp4-pack-quantized"):
        method = f"{method} ({packing['format']})"
    if method and method not in _READ:
        raise ValueError(
            f"its weights are packed by {method}, which is not read here; take the bf16 folder and "
            f"weight_format 4 bit, or a folder packed by bitsandbytes, or an fp8 one, or serve it "
            f"and use SkyReels-V2 Language Endpoint"
        )
    # Its weights are of no use without it, so that it is asked for at once.
    if method == "bitsandbytes" and packing.get("load_in_4bit"):
        import_bitsandbytes()


def guess_config(weights: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """What the shapes of a single file's weights say, under short names.

    Raises ValueError where they are no such model, or one that can only read.
    """
    first = "layers.0.self_attn."
    if "embed_tokens.weight" not in weights or f"{first}k_proj.weight" not in weights:
        raise ValueError(f"it is no language model that is known; it must be {KNOWN}")
    vocabulary, width = weights["embed_tokens.weight"].shape
    norm = weights.get(f"{first}q_norm.weight")
    if norm is None and f"{first}q_proj.bias" not in weights:
        raise ValueError(f"it is a language model of another kind; it must be {KNOWN}")
    head = 64 if width == 896 else 128
    if norm is not None:
        head = norm.shape[0]
    tied = "lm_head.weight" not in weights
    if tied and width > LARGEST_TIED:
        raise ValueError(
            "it has no lm_head, with which a model of this size writes; it was made for reading "
            "prompts only: take the published folder, or a file that has it"
        )
    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": weights["layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": _count(weights, "layers."),
        "num_attention_heads": weights[f"{first}q_proj.weight"].shape[0] // head,
        "num_key_value_heads": weights[f"{first}k_proj.weight"].shape[0] // head,
        "head_dim": head,
        "max_position_embeddings": _CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": tied,
    }
    if "visual.patch_embed.proj.weight" not in weights:
        return FAMILIES["qwen2" if norm is None else "qwen3"], values
    values["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    values["vision_config"] = _guess_vision(weights)
    return FAMILIES["qwen2_5_vl"], values


def _guess_vision(weights: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "depth": _count(weights, "visual.blocks."),
        "hidden_size": weights["visual.patch_embed.proj.weight"].shape[0],
        "intermediate_size": weights["visual.blocks.0.mlp.gate_proj.weight"].shape[0],
        "out_hidden_size": weights["visual.merger.mlp.2.weight"].shape[0],
        "num_heads": 16,
        "tokens_per_second": 2,
    }


def _count(weights: Mapping[str, Any], prefix: str) -> int:
    """Layers whose weights begin so."""
    names = [key.removeprefix(prefix) for key in weights if key.startswith(prefix)]
    numbers = [name.partition(".")[0] for name in names]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)
