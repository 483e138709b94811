"""Bring the first trained toy set into the published layouts and file names.

    python toy/pack_first.py SOURCE_FOLDER

SOURCE_FOLDER holds dit.fp16.safetensors (original names), vae.fp16.safetensors (diffusers'
names), t5.fp16.safetensors (transformers' names) and spiece.model. The numbers are not changed.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import sys
from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.key_maps import vae_key_to_original  # noqa: E402
from skyreels_model.text_encoder import to_original_names  # noqa: E402
from toy.safetensors_writer import Entry, replacing, write_safetensors  # noqa: E402

WEIGHTS = ROOT / "toy" / "weights"
TEXT_LENGTH = 512
TIED_COPY = "encoder.embed_tokens.weight"
SPECIAL_TOKENS = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", type=pathlib.Path, help="folder of the trained set")
    source = parser.parse_args().source
    pack_transformer(
        load_file(source / "dit.fp16.safetensors"),
        WEIGHTS / "diffusion_models" / "toy" / "SkyReels-V2-DF-Toy-32P",
    )
    vae = load_file(source / "vae.fp16.safetensors")
    write_pth(
        WEIGHTS / "vae" / "toy" / "Wan2.1_VAE.pth",
        {vae_key_to_original(key): value for key, value in vae.items()},
    )
    pack_text_encoder(
        load_file(source / "t5.fp16.safetensors"),
        (source / "spiece.model").read_bytes(),
        WEIGHTS / "text_encoders" / "toy",
    )


def pack_transformer(tensors: dict[str, Tensor], folder: pathlib.Path) -> None:
    """model.safetensors, which ComfyUI's own loader opens, too, and the published config.json."""
    config = ModelConfig.from_state_dict(tensors)
    # ComfyUI reads all sizes from the tensors except this one, which is 4096 in all real files.
    core = {"transformer": {"text_dim": config.text_dim}}
    write_safetensors(
        folder / "model.safetensors",
        [Entry.of(name, tensors[name]) for name in sorted(tensors)],
        {"format": "pt", "config": json.dumps(core)},
    )
    write_json(folder / "config.json", published_config(config))


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


def pack_text_encoder(tensors: dict[str, Tensor], spiece: bytes, folder: pathlib.Path) -> None:
    """The encoder in both published layouts, and the tokenizer folder beside the original one."""
    write_pth(folder / "models_t5_umt5-xxl-enc-bf16.pth", to_original_names(tensors))
    repack = {key: value for key, value in tensors.items() if key != TIED_COPY}
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


def write_pth(path: pathlib.Path, tensors: dict[str, Tensor]) -> None:
    """A zip of tensors that loads with `weights_only=True`, of the same bytes every time."""
    # A file on disk would carry its own, temporary, name inside the zip; a buffer does not.
    buffer = io.BytesIO()
    torch.save({name: tensors[name] for name in sorted(tensors)}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def write_json(path: pathlib.Path, content: Mapping[str, object]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
