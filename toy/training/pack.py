"""The trained set in the published layouts and file names, float16, the same bytes every time."""

from __future__ import annotations

import io
import json
import pathlib
from collections.abc import Mapping

import torch
from torch import Tensor

from skyreels_model.config import ModelConfig
from skyreels_model.text_encoder import hf_to_original
from toy.safetensors_writer import Entry, replacing, write_safetensors

TEXT_LENGTH = 512
IMAGE_ENCODER = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
CAUSAL_LORA = "Self-Forcing-Toy-32P.safetensors"
MODULATION = ".modulation.weight"
SPECIAL_TOKENS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def pack_transformer(
    weights: Mapping[str, Tensor], folder: pathlib.Path, head_dim: int = 128
) -> None:
    """model.safetensors, which ComfyUI's own loader opens, too, and the published config.json."""
    tensors = {_published_name(name): value for name, value in half(weights).items()}
    config = ModelConfig.from_state_dict(tensors, head_dim)
    # ComfyUI reads all sizes from the tensors except this one, which is 4096 in all real files.
    core = {"transformer": {"text_dim": config.text_dim}}
    write_safetensors(
        folder / "model.safetensors",
        [Entry.of(name, tensors[name]) for name in sorted(tensors)],
        {"format": "pt", "config": json.dumps(core)},
    )
    write_json(folder / "config.json", published_config(config))


def pack_lora(weights: Mapping[str, Tensor], path: pathlib.Path) -> None:
    """A LoRA in one file, by the names that its weights have."""
    tensors = half(weights)
    entries = [Entry.of(name, tensors[name]) for name in sorted(tensors)]
    write_safetensors(path, entries, {"format": "pt"})


def _published_name(name: str) -> str:
    return name.removesuffix(".weight") if name.endswith(MODULATION) else name


def published_config(config: ModelConfig) -> dict[str, object]:
    """The fields that the reference's `WanModel` registers; source: its `register_to_config`."""
    return {
        "_class_name": "WanModel",
        "dim": config.dim,
        "eps": config.eps,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "in_dim": config.in_dim,
        "inject_sample_info": config.fps_embedding,
        "model_type": config.model_type,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "out_dim": config.out_dim,
        "text_len": TEXT_LENGTH,
    }


def pack_text_encoder(weights: Mapping[str, Tensor], spiece: bytes, folder: pathlib.Path) -> None:
    """The encoder in both published layouts, and the tokenizer folder beside the original one."""
    tensors = half(weights)
    write_pth(folder / "models_t5_umt5-xxl-enc-bf16.pth", tensors)
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    repack = {name: tensors[original] for name, original in _hf_names(layers).items()}
    repack["spiece_model"] = torch.frombuffer(bytearray(spiece), dtype=torch.uint8)
    write_safetensors(
        folder / "umt5_xxl_fp16.safetensors",
        [Entry.of(name, repack[name]) for name in sorted(repack)],
    )
    tokenizer = folder / "google" / "umt5-xxl"
    with replacing(tokenizer / "spiece.model") as temporary:
        temporary.write_bytes(spiece)
    write_json(
        tokenizer / "tokenizer_config.json",
        {
            **SPECIAL_TOKENS,
            "extra_ids": 0,
            "model_max_length": TEXT_LENGTH,
            "tokenizer_class": "T5Tokenizer",
        },
    )
    write_json(tokenizer / "special_tokens_map.json", SPECIAL_TOKENS)


def _hf_names(layers: int) -> dict[str, str]:
    """transformers' name of each tensor -> its original name."""
    parts = (
        "layer.0.layer_norm",
        "layer.1.layer_norm",
        "layer.0.SelfAttention.relative_attention_bias",
    )
    parts += tuple(f"layer.0.SelfAttention.{name}" for name in "qkvo")
    parts += tuple(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo"))
    names = ["shared.weight", "encoder.final_layer_norm.weight"]
    names += [f"encoder.block.{i}.{part}.weight" for i in range(layers) for part in parts]
    return {name: str(hf_to_original(name)) for name in names}


def half(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.half() for name, value in weights.items()}


def write_pth(path: pathlib.Path, tensors: Mapping[str, Tensor]) -> None:
    """A zip of tensors that loads with `weights_only=True`, of the same bytes every time."""
    # A file on disk would carry its own, temporary, name inside the zip; a buffer does not.
    buffer = io.BytesIO()
    torch.save({name: tensors[name] for name in sorted(tensors)}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def write_json(path: pathlib.Path, content: Mapping[str, object]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
