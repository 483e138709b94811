"""Files to tensors to modules: every layout and every way in which a file can be wrong."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from skyreels_model.config import ModelConfig
from skyreels_model.files import checkpoint, loading
from skyreels_model.model import SkyReelsModel, names
from skyreels_model.model.names import transformer_key_to_diffusers
from toy.random_weights import PUBLISHED, dit_shapes

SMALL = ModelConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=32, fps_embedding=True)


@pytest.fixture
def state():
    torch.manual_seed(0)
    return {k: torch.randn(shape) for k, shape in dit_shapes(SMALL).items()}


def build(tensors):
    own = names.transformer_tensors(tensors)
    model = SkyReelsModel(ModelConfig.from_state_dict(own), device="meta")
    return model, loading.load_weights(model, own)


@pytest.mark.parametrize("prefix", ["", *names.PREFIXES])
def test_prefixes_and_markers(state, prefix, tmp_path):
    named = {prefix + k: v for k, v in state.items()}
    named["model_type.SkyReels-V2-DF-14B-720P"] = torch.zeros(1)
    named[prefix + "model_type.x"] = torch.zeros(1)
    save_file(named, tmp_path / "model.safetensors")
    model, report = build(checkpoint.read(tmp_path / "model.safetensors").tensors)
    assert report.matched == len(state) and report.unexpected == []
    loaded = model.state_dict()
    for key, value in state.items():
        name = key if key in loaded else f"{key}.weight"
        assert torch.equal(loaded[name], value)


def test_unexpected_keys_are_reported(state):
    model, report = build({**state, "blocks.0.extra": torch.zeros(1)})
    assert report.unexpected == ["blocks.0.extra"]
    assert str(report) == f"{len(state)} tensors matched, 0 missing, 1 unexpected (blocks.0.extra)"


def test_weights_are_not_copied_and_only_the_time_path_and_the_head_are_widened(state, tmp_path):
    half = {k: v.to(torch.bfloat16) for k, v in state.items()}
    save_file(half, tmp_path / "model.safetensors")
    tensors = checkpoint.read(tmp_path / "model.safetensors").tensors
    model = SkyReelsModel(SMALL, dtype=torch.bfloat16, device="meta")
    loading.load_weights(model, tensors)
    for key, value in model.state_dict().items():
        widened = key.startswith(("time_", "fps_", "head.head."))
        assert value.dtype == (torch.float32 if widened else torch.bfloat16), key
        original = tensors.get(key, tensors.get(key.removesuffix(".weight")))
        assert (value.data_ptr() == original.data_ptr()) != widened, key


@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_published_checkpoints_are_told_from_their_shapes(config):
    shapes = dit_shapes(config)
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    assert ModelConfig.from_state_dict(state) == config


def test_missing_block_and_missing_weight(state):
    for key in [k for k in state if k.startswith("blocks.0.") and "ffn.0.weight" not in k]:
        del state[key]
    with pytest.raises(ValueError, match="blocks.0"):
        build(state)
    del state["blocks.0.ffn.0.weight"]
    with pytest.raises(ValueError, match="is a shard missing"):
        build(state)


def test_shards(state, tmp_path):
    keys = sorted(state)
    files = [tmp_path / f"m-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    for i, file in enumerate(files):
        save_file({k: state[k] for k in keys[i::3]}, file)
    for file in files:
        assert checkpoint.read(file).tensors.keys() == state.keys()
    save_file({k: state[k] for k in [*keys[1::3], keys[0]]}, files[1])
    with pytest.raises(ValueError, match="in another shard"):
        checkpoint.read(files[0])
    files[2].unlink()
    with pytest.raises(ValueError, match=r"1 are missing.*m-00003-of-00003"):
        checkpoint.read(files[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_numbers_that_are_none_are_refused(state, value, dtype):
    key = "blocks.1.ffn.0.weight"
    state[key][5, 7] = value
    state[key] = state[key].to(dtype)
    with pytest.raises(ValueError, match=r"blocks\.1\.ffn\.0\.weight holds numbers"):
        build(state)


def test_every_8_bit_number_is_judged_rightly():
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        for pattern in range(256):
            one = torch.tensor([0x3A, pattern], dtype=torch.uint8).view(dtype)
            assert loading.is_finite(one) == bool(one.float().isfinite().all()), pattern


def test_other_kinds_of_files(tmp_path):
    one = torch.ones(1)
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "absent.safetensors")
    for nested in ([1, 2], {}, {"x": 1}, {"state_dict": 1}, {"a": {"b": {"c": {"d": {"x": one}}}}}):
        torch.save(nested, tmp_path / "list.pth")
        with pytest.raises(ValueError, match="not a file of named tensors"):
            checkpoint.read(tmp_path / "list.pth")


FOREIGN = [
    (b"", "is empty"),
    (bytes(100), "is empty"),
    (b"\n<!DOCTYPE html><html>", "a web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a pointer of Git LFS"),
    (b'{"error": "access denied"}', "JSON text"),
    (b"\x08\x07onnx", r"something that begins with b'\x08"),
]


@pytest.mark.parametrize(("content", "says"), FOREIGN)
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_what_stands_in_a_files_place_is_told(tmp_path, content, says, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="model") as error:
        checkpoint.read(tmp_path / name)
    assert says in str(error.value) and f"({len(content)} bytes)" in str(error.value)


def test_safetensors_are_told_whatever_the_length_of_their_header(tmp_path):
    """Its first byte may be that of a pickle."""
    path, begins = tmp_path / "model.safetensors", set()
    for length in range(0, 2048, 8):
        save_file({"x": torch.ones(2)}, path, {"pad": "." * length})
        assert checkpoint.read(path).tensors.keys() == {"x"}
        begins.add(path.read_bytes()[0])
    assert begins == set(range(0, 256, 8))


def test_files_larger_than_the_memory(tmp_path, larger_than_memory):
    """Full of holes, so that they take no room on the disk."""
    size = larger_than_memory
    small, holes = torch.randn(3, 5), {"dtype": "BF16", "shape": [2, size // 4]}
    header = {
        "__metadata__": {"format": "pt"},
        "small": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]},
        "none": {"dtype": "F32", "shape": [0, 5], "data_offsets": [60, 60]},
        "large": {**holes, "data_offsets": [60, 60 + size]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "large.safetensors"
    with path.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text + small.numpy().tobytes())
        opened.truncate(8 + len(text) + 60 + size)
    file = checkpoint.read(path)
    assert file.metadata == {"format": "pt"}
    assert torch.equal(file.tensors["small"], small) and file.tensors["none"].shape == (0, 5)
    large = file.tensors["large"]
    assert large.shape == (2, size // 4) and large.dtype == torch.bfloat16
    assert not large[-1, -1000:].any()
    large[0, 0] = 1  # the file stays as it was
    file.release(large[1])
    assert not checkpoint.read(path).tensors["large"][0, 0]
    with path.open("r+b") as opened:
        opened.truncate(size)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.read(path)


def test_content_tells_what_a_file_is_not_its_name(state, tmp_path):
    save_file(state, tmp_path / "named.pth")
    torch.save(state, tmp_path / "named.safetensors")
    torch.save(state, tmp_path / "old.sft", _use_new_zipfile_serialization=False)
    for name in ("named.pth", "named.safetensors", "old.sft"):
        assert checkpoint.read(tmp_path / name).tensors.keys() == state.keys()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["state_dict", "model", "module", "ema"])
def test_state_dict_inside_a_pth(state, tmp_path, zipped, name):
    """Also as PyTorch before 1.6 wrote it."""
    nested = {name: state, "epoch": 3, "optimizer": {"lr": 1.0}}
    torch.save(nested, tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    assert checkpoint.read(tmp_path / "model.pth").tensors.keys() == state.keys()


@pytest.mark.parametrize("names", [("generator", "generator_ema"), ("model", "ema", "critic")])
def test_of_several_sets_the_averaged_one(state, tmp_path, names):
    sets = {name: {key: value + i for key, value in state.items()} for i, name in enumerate(names)}
    torch.save({**sets, "step": 3}, tmp_path / "model.pt")
    file = checkpoint.read(tmp_path / "model.pt")
    averaged = next(name for name in names if "ema" in name)
    assert all(torch.equal(file.tensors[k], sets[averaged][k]) for k in state)
    assert file.note == f"of its sets ({', '.join(sorted(names))}) {averaged} was taken"


def test_sets_of_which_none_is_meant(state, tmp_path):
    for sets in (("a", "b"), ("a_ema", "b_ema")):
        torch.save(dict.fromkeys(sets, state), tmp_path / "model.pt")
        with pytest.raises(ValueError, match=rf"2 sets of tensors \({', '.join(sets)}\)"):
            checkpoint.read(tmp_path / "model.pt")


WRAPPED = {
    "data parallel": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled blocks": lambda key: re.sub(r"^(blocks\.\d+)\.", r"\1._orig_mod.", key),
    "sharded": lambda key: f"model._fsdp_wrapped_module.{key}".replace(
        ".ffn", "._fsdp_wrapped_module._checkpoint_wrapped_module.ffn"
    ),
    "a generator's": lambda key: f"generator.model.{key}",
}


@pytest.mark.parametrize("name", WRAPPED)
def test_names_that_trainers_wrap(state, tmp_path, name):
    save_file({WRAPPED[name](k): v for k, v in state.items()}, tmp_path / "model.safetensors")
    model, report = build(checkpoint.read(tmp_path / "model.safetensors").tensors)
    assert report.matched == len(state) and report.unexpected == []
    assert torch.equal(model.state_dict()["blocks.1.ffn.2.bias"], state["blocks.1.ffn.2.bias"])


def test_shards_of_two_precisions(state, tmp_path):
    half = [k for k in state if k.startswith("blocks.1.")]
    files = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({k: v for k, v in state.items() if k not in half}, files[0])
    save_file({k: state[k].bfloat16() for k in half}, files[1])
    with pytest.raises(ValueError, match=r"00002-of.*as bfloat16.*00001-of.*as float32.*delete"):
        checkpoint.read(files[0])


PAIRS = [
    (torch.float32, torch.float64),
    (torch.bfloat16, torch.float8_e4m3fn),
    (torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_shards_of_two_other_precisions(state, tmp_path, one, other):
    half = [k for k in state if k.startswith("blocks.1.") and state[k].ndim == 2]
    files = [tmp_path / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    save_file({k: v.to(one) for k, v in state.items() if k not in half}, files[0])
    save_file({k: state[k].to(other) for k in half}, files[1])
    with pytest.raises(ValueError, match="two downloads in different precision"):
        checkpoint.read(files[0])
    scales = {f"{k.removesuffix('.weight')}.scale_weight": torch.ones(()) for k in half}
    save_file({k: state[k].to(other) for k in half} | scales, files[1])
    assert len(checkpoint.read(files[0]).tensors) == len(state) + len(scales)


def test_a_weight_under_two_names(state):
    name = "blocks.0.modulation"
    with pytest.raises(ValueError, match="blocks.0.modulation.weight is in the file twice"):
        build({**state, f"{name}.weight": state[name]})
    theirs = {transformer_key_to_diffusers(key): value for key, value in state.items()}
    build(theirs)
    with pytest.raises(ValueError, match="has blocks.0.modulation twice"):
        build({**theirs, name: state[name]})


RELATIVES = [
    ("vace_blocks.0.x", "VACE"),
    ("control_adapter.conv.weight", "camera control"),
    ("ref_conv.weight", "Wan Fun"),
    ("img_emb.emb_pos", "FLF2V"),
    ("patch_embedding_pose.weight", "further input"),
]


@pytest.mark.parametrize(("key", "says"), RELATIVES)
def test_relatives_of_the_model_are_named(state, key, says):
    with pytest.raises(ValueError, match=f"{says}.*not read here"):
        build({**state, key: torch.ones(1)})


@pytest.mark.parametrize("channels", [36, 48])
def test_wan_2_2_is_told_by_its_input(state, channels):
    state["patch_embedding.weight"] = torch.ones(128, channels, 1, 2, 2)
    with pytest.raises(ValueError, match=f"takes {channels} channels and has no image layers"):
        build(state)


def test_shards_that_keep_some_blocks_finer(state, tmp_path):
    """Mixed within a shard, hence on purpose."""
    kept = {k: v if k.startswith("blocks.0.") else v.half() for k, v in state.items()}
    parts = [[k for k in state if k.startswith("blocks.")], []]
    parts[1] = [k for k in state if k not in parts[0]]
    for i, keys in enumerate(parts):
        save_file({k: kept[k] for k in keys}, tmp_path / f"model-0000{i + 1}-of-00002.safetensors")
    read = checkpoint.read(tmp_path / "model-00001-of-00002.safetensors").tensors
    assert {k: v.dtype for k, v in read.items()} == {k: v.dtype for k, v in kept.items()}


def test_a_folder_with_both_precisions_gives_the_chosen_one(state, tmp_path):
    keys = sorted(state)
    for stem, count, dtype in (("model", 2, torch.float32), ("model.fp16", 3, torch.float16)):
        for i in range(count):
            part = {k: state[k].to(dtype) for k in keys[i::count]}
            save_file(part, tmp_path / f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors")
    for stem, count, dtype in (("model", 2, torch.float32), ("model.fp16", 3, torch.float16)):
        read = checkpoint.read(tmp_path / f"{stem}-00001-of-{count:05d}.safetensors").tensors
        assert read.keys() == state.keys()
        assert {tensor.dtype for tensor in read.values()} == {dtype}


@pytest.mark.parametrize("kind", ["model.safetensors", "model.pth", "before 1.6.pth"])
def test_what_was_released_can_be_read_again(state, tmp_path, kind):
    """From the file, if it is mapped; else it was never given up."""
    path = tmp_path / kind
    if kind.endswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization="before" not in kind)
    file = checkpoint.read(path)
    assert bool(file.mapped) == ("before" not in kind)
    model = SkyReelsModel(SMALL, dtype=torch.bfloat16, device="meta")
    loading.load_weights(model, file.tensors, release=file.release)
    foreign = torch.ones(2**16)
    file.release(foreign)
    assert foreign.eq(1).all()
    assert all(torch.equal(file.tensors[key], value) for key, value in state.items())
    name = "patch_embedding.weight"
    assert torch.equal(model.patch_embedding.weight, state[name].bfloat16())


def test_all_is_checked_before_anything_is_put_in_place(state):
    state["head.head.weight"][0, 0] = torch.nan
    model = SkyReelsModel(SMALL, device="meta")
    with pytest.raises(ValueError, match=r"head\.head\.weight holds numbers"):
        loading.load_weights(model, state)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("value", [7e4, -1e30])
def test_numbers_too_large_for_the_wanted_format_are_refused(value):
    weights = {"weight": torch.full((2, 2), value), "bias": torch.zeros(2)}
    held = nn.Linear(2, 2, device="meta", dtype=torch.bfloat16)
    loading.load_weights(held, weights)
    assert torch.isfinite(held.weight).all()
    with pytest.raises(ValueError, match="weight holds numbers beyond 65504, .* of float16"):
        loading.load_weights(nn.Linear(2, 2, device="meta", dtype=torch.float16), weights)


@pytest.mark.parametrize("prefix", ["transformer.", "net._orig_mod."])
def test_any_prefix_is_a_prefix(state, prefix):
    named = {prefix + key: value for key, value in state.items()}
    named["vae.conv1.weight"] = torch.ones(1)
    _, report = build(named)
    assert report.unexpected == []
    assert names.other_tensors(named) == ["vae.conv1.weight"]


def test_upper_case_types_and_a_shard_that_is_none(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "X.SAFETENSORS")
    assert checkpoint.read(tmp_path / "X.SAFETENSORS").tensors.keys() == {"x"}
    for name, key in (("00000", "none"), ("00001", "a"), ("00002", "b")):
        save_file({key: torch.ones(1)}, tmp_path / f"z-{name}-of-00002.safetensors")
    first = checkpoint.read(tmp_path / "z-00000-of-00002.safetensors")
    assert first.tensors.keys() == {"none"}
    assert checkpoint.read(tmp_path / "z-00001-of-00002.safetensors").tensors.keys() == {"a", "b"}
