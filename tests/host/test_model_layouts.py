"""Diffusion models in every layout that people have, each against the plain file."""

import json

import pytest
import torch
from safetensors.torch import save_file


def block_weights(state):
    return [k for k, v in state.items() if k.startswith("blocks.") and v.ndim == 2]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def older_fp8(plain, dtype, fine=False):
    """A file in the older convention of scales, and the numbers that it stands for."""
    stored, meant = dict(plain), dict(plain)
    keys = block_weights(plain)
    if fine:
        keys += ["text_embedding.0.weight", "time_projection.1.weight", "head.head.weight"]
    for key in keys:
        scale = plain[key].abs().max() / torch.finfo(dtype).max
        stored[key] = (plain[key] / scale).to(dtype)
        stored[key.replace("weight", "scale_weight")] = scale
        meant[key] = stored[key].float() * scale
    stored["scaled_fp8"] = torch.zeros(0, dtype=dtype)
    return stored, meant


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("fine", [False, True])
def test_scaled_fp8(open_model, velocity, reference, models_folder, plain, dtype, fine):
    stored, meant = older_fp8(plain, dtype, fine)
    save_file(stored, models_folder / "diffusion_models" / "scaled.safetensors")
    model, report = open_model("scaled.safetensors")
    assert relative(velocity(model), reference(meant)) < 1e-5
    assert relative(velocity(model), reference(plain)) > 1e-4
    count = len(stored) - len(plain) - 1
    assert f"quantised {count} of {len(plain)} scaled {str(dtype)[6:]}" in report
    assert f"{len(plain)} tensors matched, 0 missing, 0 unexpected" in report
    held = model.model.diffusion_model.blocks[0].ffn[0].weight
    assert held.nbytes < plain["blocks.0.ffn.0.weight"].nbytes / 3


# The host's int8 layer rounds its input, too.
FORMATS = {"float8_e4m3fn": 1e-5, "nvfp4": 1e-5, "mxfp8": 1e-5, "int8_tensorwise": 3e-2}


@pytest.mark.parametrize(("name", "limit"), FORMATS.items())
def test_the_hosts_own_quantised_format(
    open_model, velocity, reference, models_folder, plain, name, limit
):
    """Made by the host's quantiser, read back by the host's own layer: our loader is between."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    if name not in QUANT_ALGOS:
        pytest.skip(f"this ComfyUI does not know {name}")
    layout = QUANT_ALGOS[name]["comfy_tensor_layout"]
    stored, meant = dict(plain), dict(plain)
    for key in [*block_weights(plain), "text_embedding.0.weight"]:
        tensor = QuantizedTensor.from_float(plain[key].contiguous(), layout)
        del stored[key]
        stored |= tensor.state_dict(key)
        settings = json.dumps({"format": name}).encode()
        stored[key.replace("weight", "comfy_quant")] = torch.tensor(list(settings)).byte()
        meant[key] = tensor.dequantize()
    stored = {f"model.diffusion_model.{k}": v.contiguous() for k, v in stored.items()}
    save_file(stored, models_folder / "diffusion_models" / "mixed.safetensors")
    model, report = open_model("mixed.safetensors")
    assert relative(velocity(model), reference(meant)) < limit
    assert f"scaled {name}" in report and "0 missing, 0 unexpected" in report


def diffusers_model(image=False, fps=False):
    """diffusers' own transformer of a small size, with random weights."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(3)
    theirs = diffusers.SkyReelsV2Transformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        in_channels=36 if image else 16,
        text_dim=64,
        ffn_dim=320,
        num_layers=2,
        image_dim=1280 if image else None,
        added_kv_proj_dim=128 if image else None,
        inject_sample_info=fps,
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return theirs.eval().requires_grad_(False)


@pytest.mark.parametrize("size", ["10GB", "500KB"])
@pytest.mark.parametrize("kind", ["DF", "DF with fps", "I2V"])
def test_diffusers_folder(open_model, models_folder, size, kind):
    theirs = diffusers_model(image=kind == "I2V", fps="fps" in kind)
    name = f"SkyReels-V2-{kind[:3].strip()}-14B-720P-Diffusers {size}"
    folder = models_folder / "diffusion_models" / name / kind / "transformer"
    theirs.save_pretrained(folder, max_shard_size=size)
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 1) == (size == "500KB")
    model, report = open_model(f"{name}/{kind}/transformer/{files[0].name}")
    assert "0 missing, 0 unexpected" in report
    assert ("fps embedding yes" in report) == ("fps" in kind) and (" I2V," in report) == (
        kind == "I2V"
    )
    x = torch.randn(1, 36 if kind == "I2V" else 16, 3, 4, 4)
    t, context = torch.tensor([700]), torch.randn(1, 512, 64)
    features = torch.randn(1, 257, 1280) if kind == "I2V" else None
    fps = torch.tensor([1]) if "fps" in kind else None
    with torch.inference_mode():
        mine = model.model.diffusion_model(x, t, context, clip_fea=features)
        theirs_ = theirs(
            x, t, context, encoder_hidden_states_image=features, fps=fps, return_dict=False
        )[0]
    assert relative(mine, theirs_) < 1e-5


def test_single_file_with_diffusers_names_and_a_prefix(open_model, velocity, models_folder):
    theirs = diffusers_model()
    state = {f"model.{k}": v for k, v in theirs.state_dict().items()}
    state["model_type.SkyReels-V2-DF-14B-720P"] = torch.zeros(1)
    save_file(state, models_folder / "diffusion_models" / "single.safetensors")
    model, report = open_model("single.safetensors")
    assert "0 missing, 0 unexpected" in report
    folder = models_folder / "diffusion_models" / "again" / "transformer"
    theirs.save_pretrained(folder)
    other, _ = open_model("again/transformer/diffusion_pytorch_model.safetensors")
    assert torch.equal(velocity(model), velocity(other))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model.", "model."])
def test_single_file_repacks(open_model, velocity, reference, models_folder, plain, dtype, prefix):
    """With a marker tensor, every prefix, and plain 8-bit numbers, whose only loss is theirs."""
    stored = {k: v.to(dtype) if v.ndim == 2 else v for k, v in plain.items()}
    meant = {k: v.float() for k, v in stored.items()}
    stored = {prefix + k: v for k, v in stored.items()}
    stored["model_type.SkyReels-V2-DF-14B-720P"] = torch.zeros(1)
    name = "Wan2_1-SkyReels-V2-DF-14B-720P.safetensors"
    save_file(stored, models_folder / "diffusion_models" / name)
    model, report = open_model(name)
    assert relative(velocity(model), reference(meant)) < 1e-5
    assert "SkyReels-V2 DF" in report and ", 720P:" in report and "0 unexpected" in report
    assert (f"plain {str(dtype)[6:]}" in report) == (dtype.itemsize == 1)


NAMES = [
    ("SkyReels-V2-DF-14B-540P/model-00001-of-00012.safetensors", "SkyReels-V2 DF", "540P"),
    ("SkyReels-V2-T2V-14B-720P/x.safetensors", "SkyReels-V2 T2V", "720P"),
    ("Wan2_1-SkyReels-V2-T2V-14B-720P_fp16.safetensors", "SkyReels-V2 T2V", "720P"),
    ("wan2.1_t2v_14B_fp16.safetensors", "Wan 2.1 T2V", "resolution not in its name"),
    ("wan2.2_t2v_high_noise_14B_fp16.safetensors", "Wan 2.2 T2V", "resolution not in its name"),
    ("Wan2.1-I2V-14B-480P/diffusion_pytorch_model.safetensors", "Wan 2.1 I2V", "480P"),
]


@pytest.mark.parametrize(("name", "family", "profile"), NAMES)
def test_the_line_that_says_what_a_file_is(name, family, profile):
    from skyreels_model.files.loading import LoadReport
    from skyreels_model.model import identity as describe
    from toy.random_weights import PUBLISHED, dit_shapes

    config = PUBLISHED["I2V-14B-540P" if "I2V" in name else "DF-14B-540P"]
    weights = {
        key: torch.empty(shape, device="meta", dtype=torch.float16)
        for key, shape in dit_shapes(config).items()
    }
    found = describe.variant(config, name)
    report = LoadReport(len(weights))
    line = describe.transformer(config, weights, name, found, torch.bfloat16, report)
    assert line.startswith(f"{family}, 14B, {profile}: 1")
    assert "B parameters (40 blocks of 5120), stored float16, used bfloat16, quantised none" in line
    assert f"{len(weights)} tensors matched, 0 missing, 0 unexpected" in line and "\n" not in line


@pytest.mark.parametrize("kind", ["t2v 1.3B", "t2v 14B", "i2v 14B"])
def test_wan_files_at_full_size_by_cores_own_model(host, kind):
    """Names and shapes of ComfyUI's Wan 2.1, on the meta device: ours has the same."""
    import comfy.ldm.wan.model
    import comfy.ops

    from skyreels_model.config import ModelConfig
    from skyreels_model.files import loading
    from skyreels_model.model import SkyReelsModel, names

    model_type, size = kind.split()
    wide = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
    narrow = {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30}
    theirs = comfy.ldm.wan.model.WanModel(
        model_type=model_type,
        in_dim=36 if model_type == "i2v" else 16,
        **(wide if size == "14B" else narrow),
        device="meta",
        dtype=torch.float16,
        operations=comfy.ops.disable_weight_init,
    ).state_dict()
    weights = names.transformer_tensors({f"model.{k}": v for k, v in theirs.items()})
    model = SkyReelsModel(ModelConfig.from_state_dict(weights), torch.nn, torch.float16, "meta")
    report = loading.load_weights(model, weights)
    assert report.matched == len(theirs) and report.unexpected == []


@pytest.mark.parametrize("name", ["DF-1.3B-540P", "DF-14B-720P", "I2V-14B-540P"])
def test_diffusers_files_at_full_size_by_diffusers_own_model(name):
    diffusers = pytest.importorskip("diffusers")
    from skyreels_model.config import ModelConfig
    from skyreels_model.model import names
    from toy.random_weights import PUBLISHED, dit_shapes

    config = PUBLISHED[name]
    image = config.model_type == "i2v"
    with torch.device("meta"):
        theirs = diffusers.SkyReelsV2Transformer3DModel(
            num_attention_heads=config.num_heads,
            in_channels=config.in_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            image_dim=1280 if image else None,
            added_kv_proj_dim=config.dim if image else None,
            inject_sample_info=config.fps_embedding,
        )
    weights = names.transformer_tensors(theirs.state_dict())
    assert ModelConfig.from_state_dict(weights) == config
    assert {k: tuple(v.shape) for k, v in weights.items()} == dit_shapes(config)


def test_quantised_files_where_the_host_gives_layers_their_weights_late(
    open_model, velocity, models_folder, plain, monkeypatch
):
    """With dynamic VRAM, the host's default on NVIDIA."""
    import comfy.memory_management

    stored, _ = older_fp8(plain, torch.float8_e4m3fn, fine=True)
    save_file(stored, models_folder / "diffusion_models" / "late.safetensors")
    before = velocity(open_model("late.safetensors")[0])
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    assert torch.equal(velocity(open_model("late.safetensors")[0]), before)


def test_a_scale_for_each_row(open_model, velocity, reference, models_folder, plain):
    """Which the host's layers do not hold: made numbers, as the report says."""
    stored, meant = dict(plain), dict(plain)
    for key in ("blocks.0.ffn.0.weight", "blocks.1.self_attn.q.weight"):
        scale = plain[key].abs().amax(1) / 448
        stored[key] = (plain[key] / scale[:, None]).to(torch.float8_e4m3fn)
        stored[key.replace("weight", "weight_scale")] = scale
        meant[key] = (stored[key].float() * scale[:, None]).bfloat16().float()
    save_file(stored, models_folder / "diffusion_models" / "rows.safetensors")
    model, report = open_model("rows.safetensors")
    assert "(2 of them made plain numbers: they have a scale for each row)" in report
    assert relative(velocity(model), reference(meant)) < 1e-5


def test_what_a_file_holds_beside_the_model(open_model, models_folder, plain):
    """Counted, and never taken for weights of the model."""
    whole = {f"model.diffusion_model.{k}": v for k, v in plain.items()}
    whole |= {"vae.conv1.weight": torch.ones(2, 2), "text_encoders.x.scale_weight": torch.ones(1)}
    save_file(whole, models_folder / "diffusion_models" / "all_in_one.safetensors")
    _, report = open_model("all_in_one.safetensors")
    assert f"{len(plain)} tensors matched, 0 missing, 2 unexpected (text_encoders.x" in report


def test_fp8_on_a_device_that_has_none(
    open_model, velocity, reference, models_folder, plain, monkeypatch
):
    """Converted while loading, as the report says; where asked for by name, refused."""
    import comfy.model_management

    fp8 = (torch.float8_e4m3fn, torch.float8_e5m2)
    monkeypatch.setattr(comfy.model_management, "supports_cast", lambda _, dtype: dtype not in fp8)
    folder = models_folder / "diffusion_models"
    stored = {k: v.to(fp8[0]) if v.ndim == 2 else v for k, v in plain.items()}
    save_file(stored, folder / "plain_fp8.safetensors")
    model, report = open_model("plain_fp8.safetensors", "default")
    assert "stored float8_e4m3fn, used bfloat16" in report or "used float32" in report
    assert model.model.diffusion_model.blocks[0].ffn[0].weight.dtype not in fp8
    stored, meant = older_fp8(plain, fp8[0])
    save_file(stored, folder / "scaled_fp8.safetensors")
    model, report = open_model("scaled_fp8.safetensors")
    assert "float8_e4m3fn (40 of them made plain numbers: cpu has no fp8)" in report
    assert relative(velocity(model), reference(meant)) < 1e-2
    with pytest.raises(AssertionError, match="weight_dtype is 'fp8_e5m2', which this machine"):
        open_model("plain_fp8.safetensors", "fp8_e5m2")


FOLDERS = [
    ("SkyReels-V2-DF-14B-540P", "model{suffix}.safetensors", torch.float32, "540P"),
    ("SkyReels-V2-DF-14B-720P", "diffusion_pytorch_model{suffix}.safetensors", torch.bfloat16,
     "720P"),
]  # fmt: skip


@pytest.mark.parametrize("shards", [1, 5])
@pytest.mark.parametrize(("name", "pattern", "dtype", "profile"), FOLDERS)
def test_original_folder(
    open_model, velocity, reference, models_folder, plain, name, pattern, dtype, profile, shards
):
    """As Hugging Face's own writer cuts it: an index, config.json and the VAE beside the shards."""
    hub = pytest.importorskip("huggingface_hub")
    state = {k: v.to(dtype) for k, v in plain.items()}
    total = sum(v.nbytes for v in state.values())
    folder = models_folder / "diffusion_models" / f"{name} in {shards}" / name
    folder.mkdir(parents=True)
    size = total if shards == 1 else total // shards + total // 20
    hub.save_torch_state_dict(state, folder, filename_pattern=pattern, max_shard_size=size)
    (folder / "config.json").write_text('{"model_type": "t2v"}')
    files = sorted(folder.glob("*.safetensors"))
    assert (len(files) > 1) == (shards > 1)
    assert (folder / f"{pattern.format(suffix='')}.index.json").is_file() == (shards > 1)
    model, report = open_model(f"{folder.parent.name}/{name}/{files[0].name}")
    assert report.startswith(f"SkyReels-V2 DF, another size, {profile}: ")
    assert f"stored {str(dtype)[6:]}, used float32, quantised none, fps embedding yes; " in report
    assert f"{len(plain)} tensors matched, 0 missing, 0 unexpected" in report
    meant = {k: v.float() for k, v in state.items()}
    assert relative(velocity(model), reference(meant)) < 1e-6
