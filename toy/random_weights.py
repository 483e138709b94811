"""Random-weight files in the published layouts, at any size, for tests and benchmarks.

    python toy/random_weights.py dit DF-1.3B-540P PATH --dtype bf16 [--shards 12]
    python toy/random_weights.py vae PATH [--dim 96]
    python toy/random_weights.py umt5 PATH [--layout hf]

Speed and memory of a model do not depend on its numbers. Safetensors files are streamed, so that
the 57 GB of a 14B model in float32 need the memory of one piece; `.pth` files are built in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.text_encoder import UMT5Config, UMT5Encoder
from skyreels_model.vae import VideoVAE
from toy.safetensors_writer import Entry, replacing, write_safetensors  # noqa: E402

SCALE = 0.02
PIECE = 1 << 24  # numbers drawn at once: 64 MB in float32
DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
Shapes = dict[str, tuple[int, ...]]

_T2V_14B = ModelConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
_I2V_14B = replace(_T2V_14B, model_type="i2v", in_dim=36)
PUBLISHED: dict[str, ModelConfig] = {
    "DF-1.3B-540P": ModelConfig(fps_embedding=True),
    "DF-14B-540P": _T2V_14B,
    "DF-14B-720P": _T2V_14B,
    "T2V-14B-540P": _T2V_14B,
    "T2V-14B-720P": _T2V_14B,
    "I2V-1.3B-540P": ModelConfig(model_type="i2v", in_dim=36),
    "I2V-14B-540P": _I2V_14B,
    "I2V-14B-720P": _I2V_14B,
}
UMT5_XXL = UMT5Config(
    vocab=256384, dim=4096, dim_attn=4096, dim_ffn=10240, num_heads=64, num_layers=24
)


def write_dit(
    path: str | pathlib.Path,
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shards: int = 1,
) -> list[pathlib.Path]:
    """Write a diffusion transformer with the original names; returns the files.

    With several shards, `path` `X/model.safetensors` becomes `X/model-00001-of-00012.safetensors`
    and so on beside `X/model.safetensors.index.json`, as published.
    Raises ValueError unless `path` ends in .safetensors and 1 <= shards <= number of tensors.
    """
    path = pathlib.Path(path)
    entries = _entries(dit_shapes(config), dtype, seed)
    if path.suffix != ".safetensors":
        raise ValueError(f"path is {path.name}; a transformer is written as .safetensors")
    if not 1 <= shards <= len(entries):
        raise ValueError(
            f"shards is {shards}; the model has {len(entries)} tensors, so 1 to {len(entries)} are "
            f"legal; nearest: {min(max(shards, 1), len(entries))}"
        )
    if shards == 1:
        write_safetensors(path, entries)
        return [path]
    return _write_shards(path, entries, shards)


def write_vae(
    path: str | pathlib.Path, dim: int = 96, dtype: torch.dtype = torch.float32, seed: int = 0
) -> pathlib.Path:
    """Write a Wan 2.1 VAE with the original names, as .pth or .safetensors."""
    return _write(pathlib.Path(path), _entries(vae_shapes(dim), dtype, seed))


def write_umt5(
    path: str | pathlib.Path,
    config: UMT5Config = UMT5_XXL,
    layout: Literal["original", "hf"] = "original",
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    spiece_model: bytes | None = None,
) -> pathlib.Path:
    """Write a text encoder as .pth or .safetensors, with the names of the original or of HF.

    `spiece_model` is embedded as ComfyUI's repack does. Needs transformers for `hf`.
    Raises ValueError for another layout or file type.
    """
    if layout not in ("original", "hf"):
        raise ValueError(f"layout is {layout!r}; legal are 'original' and 'hf'")
    shapes = umt5_shapes(config) if layout == "original" else umt5_hf_shapes(config)
    entries = _entries(shapes, dtype, seed)
    if spiece_model is not None:
        pieces = torch.frombuffer(bytearray(spiece_model), dtype=torch.uint8)
        entries.append(Entry.of("spiece_model", pieces))
    return _write(pathlib.Path(path), entries)


def dit_shapes(config: ModelConfig) -> Shapes:
    """Original names and shapes, in which `X.modulation` is a bare parameter."""
    shapes = _shapes(SkyReelsModel(config, device="meta").state_dict())
    held = ".modulation.weight"
    return {
        name.removesuffix(".weight") if name.endswith(held) else name: shape
        for name, shape in shapes.items()
    }


def vae_shapes(dim: int) -> Shapes:
    return _shapes(VideoVAE(dim=dim, device="meta").state_dict())


def umt5_shapes(config: UMT5Config) -> Shapes:
    return _shapes(UMT5Encoder(config, device="meta").state_dict())


def umt5_hf_shapes(config: UMT5Config) -> Shapes:
    """Names and shapes of transformers' UMT5EncoderModel, its embedding stored once."""
    import transformers

    sizes = transformers.UMT5Config(
        vocab_size=config.vocab,
        d_model=config.dim,
        d_kv=config.dim_attn // config.num_heads,
        d_ff=config.dim_ffn,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        relative_attention_num_buckets=config.num_buckets,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        shapes = _shapes(transformers.UMT5EncoderModel(sizes).state_dict())
    del shapes["encoder.embed_tokens.weight"]
    return shapes


def _shapes(state_dict: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def _entries(shapes: Shapes, dtype: torch.dtype, seed: int) -> list[Entry]:
    return [_random_entry(name, shape, dtype, seed) for name, shape in shapes.items()]


def _random_entry(name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Entry:
    """Values keyed by (seed, name): the same in one file, in shards and in any order."""
    scale_of_norm = name.endswith(".gamma") or (len(shape) == 1 and name.endswith(".weight"))

    def pieces() -> Iterator[Tensor]:
        digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        left = math.prod(shape)
        while left:
            count = min(left, PIECE)
            values = torch.ones(count) if scale_of_norm else torch.empty(count)
            if not scale_of_norm:
                values.normal_(0, SCALE, generator=generator)
            yield values.to(dtype)
            left -= count

    return Entry(name, shape, dtype, pieces)


def _write(path: pathlib.Path, entries: list[Entry]) -> pathlib.Path:
    if path.suffix == ".safetensors":
        write_safetensors(path, entries)
    elif path.suffix == ".pth":
        tensors = {e.name: torch.cat(list(e.pieces())).reshape(e.shape) for e in entries}
        with replacing(path) as temporary:
            torch.save(tensors, temporary)
    else:
        raise ValueError(f"path is {path.name}; legal are .safetensors and .pth")
    return path


def _write_shards(path: pathlib.Path, entries: list[Entry], shards: int) -> list[pathlib.Path]:
    """The shards, and the index that says where each tensor lies."""
    parts = _split(entries, shards)
    files = [
        path.with_name(f"{path.stem}-{i:05d}-of-{shards:05d}.safetensors")
        for i in range(1, shards + 1)
    ]
    for file, part in zip(files, parts, strict=True):
        write_safetensors(file, part)
    index = {
        "metadata": {"total_size": sum(entry.size for entry in entries)},
        "weight_map": {e.name: f.name for f, p in zip(files, parts, strict=True) for e in p},
    }
    with replacing(path.with_name(f"{path.name}.index.json")) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return files


def _split(entries: list[Entry], count: int) -> list[list[Entry]]:
    """`count` runs of consecutive entries of about equal size, none of them empty."""
    total = sum(entry.size for entry in entries)
    parts: list[list[Entry]] = [[]]
    written = 0
    for place, entry in enumerate(entries):
        to_open = count - len(parts)
        is_full = written >= total * len(parts) / count or len(entries) - place <= to_open
        if parts[-1] and to_open and is_full:
            parts.append([])
        parts[-1].append(entry)
        written += entry.size
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    dit = kinds.add_parser("dit", help="diffusion transformer")
    dit.add_argument("model", choices=PUBLISHED)
    dit.add_argument("--shards", type=int, default=1)
    vae = kinds.add_parser("vae", help="Wan 2.1 VAE")
    vae.add_argument("--dim", type=int, default=96)
    umt5 = kinds.add_parser("umt5", help="UMT5-XXL text encoder")
    umt5.add_argument("--layout", choices=("original", "hf"), default="original")
    for kind, stored in ((dit, "fp32"), (vae, "fp32"), (umt5, "bf16")):
        kind.add_argument("path", type=pathlib.Path)
        kind.add_argument("--dtype", choices=DTYPES, default=stored)
        kind.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dtype, seed = DTYPES[options.dtype], options.seed
    if options.kind == "dit":
        write_dit(options.path, PUBLISHED[options.model], dtype, seed, options.shards)
    elif options.kind == "vae":
        write_vae(options.path, options.dim, dtype, seed)
    else:
        write_umt5(options.path, layout=options.layout, dtype=dtype, seed=seed)


if __name__ == "__main__":
    main()
