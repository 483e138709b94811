"""Random-weight files: the published shapes, the safetensors format, and loadable everywhere."""

import dataclasses
import json
import math

import pytest
import safetensors
import torch
from safetensors.torch import load_file

from skyreels_model.config import ModelConfig
from skyreels_model.files import checkpoint
from skyreels_model.model import SkyReelsModel
from skyreels_model.text_encoder import UMT5Config, UMT5Encoder, to_original_names
from skyreels_model.vae import VideoVAE
from toy import random_weights
from toy.safetensors_writer import Entry, write_safetensors

SMALL = ModelConfig(
    dim=128, ffn_dim=64, num_heads=1, num_layers=2, text_dim=32, freq_dim=32, fps_embedding=True
)
SMALL_T5 = UMT5Config(vocab=40, dim=16, dim_attn=8, dim_ffn=24, num_heads=2, num_layers=2)


@pytest.mark.parametrize(
    ("prefix", "tensors", "billions"),
    [
        ("DF-1.3B", 830, 1.4355),
        ("I2V-1.3B", 983, 1.5644),
        ("DF-14B", 1095, 14.2885),
        ("T2V-14B", 1095, 14.2885),
        ("I2V-14B", 1303, 16.3949),
    ],
)
def test_presets_have_the_published_totals(prefix, tensors, billions):
    names = [name for name in random_weights.PUBLISHED if name.startswith(prefix)]
    assert names
    for name in names:
        shapes = random_weights.dit_shapes(random_weights.PUBLISHED[name])
        parameters = sum(math.prod(shape) for shape in shapes.values())
        assert (len(shapes), round(parameters / 1e9, 4)) == (tensors, billions)


def test_umt5_xxl_has_the_published_totals():
    shapes = random_weights.umt5_shapes(random_weights.UMT5_XXL)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert (len(shapes), round(parameters / 1e9, 3)) == (242, 5.681)


def test_vae_has_the_published_totals():
    shapes = random_weights.vae_shapes(96)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    assert (len(shapes), round(parameters / 1e6, 2)) == (194, 126.89)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_transformer_file_loads_strict_and_gives_finite_velocities(tmp_path, dtype):
    path = tmp_path / "model.safetensors"
    assert random_weights.write_dit(path, SMALL, dtype) == [path]
    tensors = load_file(path)
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert "blocks.1.modulation" in tensors and "head.modulation" in tensors
    model = SkyReelsModel(dataclasses.replace(SMALL))
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    x, context = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 8, 32)
    with torch.inference_mode():
        v = model(x, torch.tensor([500.0]), context)
    assert torch.isfinite(v).all() and v.abs().max() > 0


def test_values_are_small_normal_and_norms_are_one(tmp_path):
    random_weights.write_dit(tmp_path / "model.safetensors", SMALL)
    tensors = load_file(tmp_path / "model.safetensors")
    weight = tensors["blocks.0.self_attn.q.weight"]
    assert abs(weight.mean()) < 1e-3 and 0.019 < weight.std() < 0.021
    assert torch.equal(tensors["blocks.0.self_attn.norm_q.weight"], torch.ones(128))
    assert not torch.equal(weight, tensors["blocks.1.self_attn.q.weight"])


def test_large_tensors_are_drawn_in_pieces(monkeypatch):
    entry = random_weights._random_entry("w", (7, 5), torch.float16, seed=0)
    monkeypatch.setattr(random_weights, "PIECE", 16)
    pieces = list(entry.pieces())
    assert [len(piece) for piece in pieces] == [16, 16, 3]
    assert len(torch.cat(pieces).unique()) > 30


@pytest.mark.parametrize("shards", [2, 7, 74])
def test_shards_hold_the_same_tensors_as_one_file(tmp_path, shards):
    [whole] = random_weights.write_dit(tmp_path / "whole.safetensors", SMALL)
    files = random_weights.write_dit(tmp_path / "model.safetensors", SMALL, shards=shards)
    assert [f.name for f in files][-1] == f"model-{shards:05d}-of-{shards:05d}.safetensors"
    assert all(load_file(file) for file in files)
    expected, read = load_file(whole), checkpoint.read(files[0])
    assert checkpoint.shard_files(files[-1]) == files
    assert read.tensors.keys() == expected.keys()
    assert all(torch.equal(read.tensors[name], value) for name, value in expected.items())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in expected.values())
    assert all(name in load_file(tmp_path / file) for name, file in index["weight_map"].items())
    assert index["weight_map"].keys() == expected.keys()


def test_shards_are_about_equal(tmp_path):
    config = dataclasses.replace(SMALL, num_layers=12)
    files = random_weights.write_dit(tmp_path / "model.safetensors", config, shards=3)
    sizes = [file.stat().st_size for file in files]
    assert max(sizes) < 1.5 * min(sizes)


def test_seed_and_seed_alone_changes_the_file(tmp_path):
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file, seed in zip(files, (0, 0, 1), strict=True):
        random_weights.write_dit(file, SMALL, seed=seed)
    first, same, other = (file.read_bytes() for file in files)
    assert first == same != other


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_vae_loads_strict_and_codes_finite_frames(tmp_path, suffix):
    path = random_weights.write_vae(tmp_path / f"vae{suffix}", dim=8)
    tensors = checkpoint.read(path).tensors
    vae = VideoVAE.from_state_dict(tensors)
    vae.load_state_dict(tensors, strict=True)
    with torch.inference_mode():
        latents = vae.encode(torch.randn(1, 3, 5, 16, 16))
        assert torch.isfinite(vae.decode(latents)).all()


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_umt5_loads_strict_in_both_layouts(tmp_path, layout):
    path = random_weights.write_umt5(
        tmp_path / "t5.safetensors", SMALL_T5, layout, torch.float32, spiece_model=b"pieces"
    )
    tensors = load_file(path)
    assert bytes(tensors.pop("spiece_model").tolist()) == b"pieces"
    assert ("shared.weight" in tensors) == (layout == "hf")
    tensors = to_original_names(tensors)
    assert UMT5Config.from_state_dict(tensors) == SMALL_T5
    encoder = UMT5Encoder(SMALL_T5)
    encoder.load_state_dict(tensors, strict=True)
    with torch.inference_mode():
        text = encoder(torch.tensor([[3, 5, 1]]), torch.ones(1, 3, dtype=torch.bool))
    assert torch.isfinite(text).all()


def test_metadata_and_alignment_are_those_of_the_format(tmp_path):
    path = tmp_path / "x.safetensors"
    scalar, odd = torch.tensor(3.5), torch.arange(3, dtype=torch.uint8)
    write_safetensors(path, [Entry.of("a", odd), Entry.of("b", scalar)], {"format": "pt", "k": "v"})
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "k": "v"}
        assert torch.equal(file.get_tensor("a"), odd) and torch.equal(file.get_tensor("b"), scalar)
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def wrong_size() -> Entry:
    return Entry("w", (3,), torch.float32, lambda: [torch.ones(2)])


def wrong_dtype() -> Entry:
    return Entry("w", (2,), torch.float32, lambda: [torch.ones(2, dtype=torch.float64)])


@pytest.mark.parametrize(
    ("entries", "parts"),
    [
        ([wrong_size()], ("w", "8 bytes", "12")),
        ([wrong_dtype()], ("w", "float64", "float32")),
        ([Entry.of("w", torch.ones(1)), Entry.of("w", torch.ones(1))], ("w", "twice")),
        ([Entry.of("w", torch.ones(1, dtype=torch.float64))], ("w", "float64", "float32")),
    ],
)
def test_a_bad_entry_leaves_no_file(tmp_path, entries, parts):
    with pytest.raises(ValueError) as error:
        write_safetensors(tmp_path / "x.safetensors", entries)
    assert all(part in str(error.value) for part in parts), error.value
    assert not any(tmp_path.iterdir())


def test_bad_arguments_say_what_is_legal(tmp_path):
    with pytest.raises(ValueError, match="shards is 0.*nearest: 1"):
        random_weights.write_dit(tmp_path / "m.safetensors", SMALL, shards=0)
    with pytest.raises(ValueError, match=r"m\.pth.*\.safetensors"):
        random_weights.write_dit(tmp_path / "m.pth", SMALL)
    with pytest.raises(ValueError, match=r"vae\.bin.*\.safetensors and \.pth"):
        random_weights.write_vae(tmp_path / "vae.bin", dim=8)
    with pytest.raises(ValueError, match="layout is 'gguf'.*'hf'"):
        random_weights.write_umt5(tmp_path / "t5.pth", SMALL_T5, "gguf")
    assert not any(tmp_path.iterdir())
