"""Weights with scales: both conventions of files, and what contradicts them."""

import json

import pytest
import torch

from skyreels_model.config import ModelConfig
from skyreels_model.files import loading
from skyreels_model.files.quantized import ScaledWeight, gather_scales
from skyreels_model.model import SkyReelsModel, names
from toy.random_weights import dit_shapes

SMALL = ModelConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=32)
E4M3 = torch.float8_e4m3fn


def quantise(weight, dtype=E4M3):
    """By the largest magnitude, as ComfyUI's guide to quantisation describes it."""
    scale = weight.abs().max() / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


def files(dtype=E4M3):
    """Plain tensors, the same in fp8 with scales, and the numbers that these stand for."""
    torch.manual_seed(0)
    plain = {k: torch.randn(shape) for k, shape in dit_shapes(SMALL).items()}
    scaled, meant = {}, dict(plain)
    for key, value in plain.items():
        scaled[key] = value
        if key.startswith("blocks.") and value.ndim == 2:
            scaled[key], scale = quantise(value, dtype)
            scaled[key.replace("weight", "scale_weight")] = scale
            meant[key] = scaled[key].float() * scale
    return plain, scaled, meant


def loaded(tensors, metadata=None):
    weights = names.transformer_tensors(tensors, metadata)
    model = SkyReelsModel(ModelConfig.from_state_dict(weights), device="meta")
    report = loading.load_weights(model, weights)
    assert report.unexpected == []
    state = model.state_dict()
    return {k.replace("modulation.weight", "modulation"): v for k, v in state.items()}, weights


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_the_older_convention(dtype, prefix):
    _, scaled, meant = files(dtype)
    scaled["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    scaled["blocks.0.ffn.0.scale_input"] = torch.ones(())
    state, weights = loaded({prefix + k: v for k, v in scaled.items()})
    assert all(torch.equal(state[key], meant[key]) for key in meant)
    held = weights["blocks.0.ffn.0.weight"]
    assert held.settings == {
        "format": str(dtype)[6:],
        "full_precision_matrix_mult": True,
    }
    assert held.scales.keys() == {"weight_scale", "input_scale"}
    assert loading.quantization(weights) == f"20 of {len(meant)} scaled {str(dtype)[6:]}"


@pytest.mark.parametrize("in_metadata", [False, True])
def test_the_hosts_convention(in_metadata):
    _, scaled, meant = files()
    scaled = {k.replace("scale_weight", "weight_scale"): v for k, v in scaled.items()}
    layers = [k.removesuffix(".weight_scale") for k in scaled if k.endswith(".weight_scale")]
    settings, metadata, prefix = {"format": "float8_e4m3fn"}, {}, "model.diffusion_model."
    if in_metadata:
        described = {prefix + layer: settings for layer in layers} | {"clip.x": settings}
        metadata["_quantization_metadata"] = json.dumps({"layers": described})
    else:
        text = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
        scaled |= {f"{layer}.comfy_quant": text for layer in layers}
    state, weights = loaded({prefix + k: v for k, v in scaled.items()}, metadata)
    assert all(torch.equal(state[key], meant[key]) for key in meant)
    assert weights["blocks.1.ffn.2.weight"].settings == settings


def test_a_scale_for_each_row_and_scales_beside_plain_weights():
    weight = torch.randn(4, 6)
    scale = weight.abs().amax(1) / 448
    rows = (weight / scale[:, None]).to(E4M3)
    tensors = {
        "a.weight": rows,
        "a.weight_scale": scale,
        "b.weight": weight,
        "b.scale_weight": torch.ones(1),
        "c.weight": weight,
        "c.scale_weight": torch.tensor(2.0),
    }
    kept = gather_scales(tensors, {})
    assert torch.equal(kept["a.weight"].dequantize(torch.float32), rows.float() * scale[:, None])
    assert kept["b.weight"] is weight and torch.equal(kept["c.weight"], 2 * weight)


def test_packed_formats_have_their_logical_shape_and_are_the_hosts():
    packed = ScaledWeight(torch.zeros(8, 16, dtype=torch.uint8), {"format": "nvfp4"}, {})
    assert packed.shape == (8, 32)
    with pytest.raises(ValueError, match=r"'nvfp4' are only read inside ComfyUI"):
        packed.dequantize(torch.float32)


@pytest.mark.parametrize(
    ("change", "metadata", "says"),
    [
        ({"x.weight_scale": torch.ones(())}, {}, "scales for x, but not x.weight"),
        ({"x.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, {}, "x.comfy_quant cannot be read"),
        (
            {},
            {"_quantization_metadata": '{"layers": {"y": {"format": "float8_e4m3fn"}}}'},
            "y.weight is float32, but described as float8_e4m3fn",
        ),
        ({}, {"_quantization_metadata": "{"}, "_quantization_metadata cannot be read"),
        ({}, {"_quantization_metadata": '{"layers": {"x": {}}}'}, "x has no format"),
    ],
)
def test_descriptions_that_cannot_be(change, metadata, says):
    with pytest.raises(ValueError, match=says):
        gather_scales({"y.weight": torch.ones(2, 2), **change}, metadata)


def test_of_several_scales_without_a_weight_the_files_first_is_named():
    """A set's order would be one whichever way the file is."""
    for layers in (["x", "y", "z"], ["z", "y", "x"]):
        with pytest.raises(ValueError, match=f"scales for {layers[0]}, but"):
            gather_scales({f"{layer}.weight_scale": torch.ones(()) for layer in layers}, {})


@pytest.mark.parametrize("dtype", [torch.int8, E4M3])
def test_quantos_layers(dtype):
    """A scale for each row; those of a layer's input and output say nothing of the weight."""
    plain, _, meant = files()
    state = {}
    for key, value in plain.items():
        state[key] = value
        if key.startswith("blocks.") and value.ndim == 2:
            del state[key]
            largest = 127 if dtype == torch.int8 else torch.finfo(dtype).max
            scale = value.abs().amax(dim=1, keepdim=True) / largest
            whole = (value / scale).round() if dtype == torch.int8 else value / scale
            state |= {f"{key}._data": whole.to(dtype), f"{key}._scale": scale}
            layer = key.removesuffix("weight")
            state |= {f"{layer}input_scale": torch.ones(1), f"{layer}output_scale": torch.ones(1)}
            meant[key] = state[f"{key}._data"].float() * scale
    state, weights = loaded({f"model.diffusion_model.{k}": v for k, v in state.items()})
    assert all(torch.equal(state[key], meant[key]) for key in meant)
    assert loading.quantization(weights) == f"20 of {len(meant)} scaled {str(dtype)[6:]}"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("x.weight._shift", "quanto, in 4"),
        ("x.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("x.weight.absmax", "bitsandbytes"),
        ("x.SCB", "bitsandbytes"),
        ("x.qweight", "GPTQ, AWQ or Nunchaku"),
    ],
)
def test_other_quantisers_are_named(key, kind):
    with pytest.raises(ValueError, match=f"quantised by {kind}.*{key}.*use an fp8, bf16"):
        gather_scales({"x.weight": torch.ones(2, 2), key: torch.ones(2)}, {})


def test_a_weight_of_zeros_may_have_a_scale_of_zero():
    """Quantisers take the largest magnitude for the scale, and some layers begin as zeros."""
    data, scale = torch.zeros(4, 8).to(E4M3), torch.zeros(())
    made = gather_scales({"x.weight": data, "x.weight_scale": scale}, {})["x.weight"]
    assert torch.equal(made.dequantize(torch.float32), torch.zeros(4, 8))
