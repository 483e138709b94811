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
    ("Wan2.1-I2V-14B-480P/diffusion_pytorch_model.safetensors", "Wan 2.1 I2V", "480P"),
]


@pytest.mark.parametrize(("name", "family", "profile"), NAMES)
def test_the_line_that_says_what_a_file_is(name, family, profile):
    from skyreels_model import describe
    from skyreels_model.checkpoint import LoadReport
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
