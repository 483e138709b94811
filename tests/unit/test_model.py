"""The diffusion transformer against the reference's numbers."""

import subprocess
import sys
from pathlib import Path

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model.attention import sdpa
from skyreels_model.attention.attend import last_repeated
from skyreels_model.model import layers, positions

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 5e-6  # the manifest's, for fp32


def run_case(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    case, data = golden_data.case(name), golden_data.tensors(name)
    parameters = case["parameters"]
    x, clip_fea, fps = data["x"], None, None
    if "y" in data:
        x = torch.cat([x, data["y"]], dim=1)
        b, k, j = torch.meshgrid(
            torch.arange(x.shape[0]), torch.arange(257), torch.arange(1280), indexing="ij"
        )
        clip_fea = data["clip_lut"][(29 * k + 7 * j + 1009 * b) % golden_data.LUT_SIZE]
    if parameters.get("fps_index") is not None:
        fps = torch.tensor([16, 24])[torch.tensor(parameters["fps_index"])]
    out = models.dit(case)(
        x,
        data["t"],
        golden_data.padded_text(data["context_rows"]),
        clip_fea=clip_fea,
        fps=fps,
        causal_block_size=parameters.get("causal_block_size"),
    )
    return out, data


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("name", golden_data.names("dit"))
def test_velocity_is_the_references(name, gradients, monkeypatch):
    """Without gradients layers write over what they own; in as many pieces as there can be."""
    monkeypatch.setattr(layers, "PIECE_BYTES", 1)
    monkeypatch.setattr(layers, "HIDDEN_BYTES", 1)
    with torch.set_grad_enabled(gradients):
        out, data = run_case(name)
    assert golden_data.relative_l2(out, data["expected"]) <= TOLERANCE


@pytest.mark.parametrize(("texts", "computed"), [((3, 7), 8), ((0, 0), 1), ((9, 200), 201),
                                                 ((300, 1), 512), ((512, 9), 512)])  # fmt: skip
@pytest.mark.parametrize("name", ["dit_df_batch2", "dit_i2v_batch2"])
def test_equal_rows_of_text_are_computed_once(name, texts, computed):
    """Golden cases, whose texts end in zero rows, say that it is right; here, what it costs."""
    model, data = models.dit(golden_data.case(name)), golden_data.tensors(name)
    x = torch.cat([data["x"], data["y"]], dim=1) if "y" in data else data["x"]
    context = torch.randn(2, 512, model.config.text_dim)
    for row, length in enumerate(texts):
        context[row, length:] = 0
    seen = []
    for layer in (model.text_embedding[0], model.blocks[0].cross_attn.k):
        layer.register_forward_hook(lambda _layer, given, _out: seen.append(given[0].shape[1]))
    clip = torch.randn(2, 257, 1280) if "y" in data else None
    whole = model(x, data["t"], context, clip_fea=clip, text_rows=512)
    for attend in (sdpa, lambda *given: sdpa(*given)):  # with and without a weight for a key
        seen.clear()
        short = model(x, data["t"], context, clip_fea=clip, attend=attend)
        assert seen == [computed, computed]
        assert golden_data.relative_l2(short, whole) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_key_that_stands_for_many_is_as_much_as_all_of_them(dtype):
    """In narrow formats to the bit: the logarithm of their number would be rounded by a percent."""
    q, k, v = (torch.randn(1, n, 256).to(dtype) for n in (6, 9, 9))
    all_k, all_v = (torch.cat([t, t[:, -1:].expand(-1, 383, -1)], dim=1) for t in (k, v))
    one, every = last_repeated(sdpa, 384)(q, k, v, 2), sdpa(q, all_k, all_v, 2)
    assert torch.allclose(one, every, atol=0 if dtype == torch.bfloat16 else 1e-6)
    assert not torch.allclose(one, sdpa(q, k, v, 2), atol=1e-2)


def test_primitives():
    data = golden_data.tensors("dit_primitives")

    def close(actual, key):
        expected = data[key]
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()

    close(positions.sinusoid(data["t"], 256), "sinusoid_f32")
    grid = (3, 2, 3)
    for size, head_dim in (("hd128", 128), ("small", 40)):
        rope = positions.rope_table(grid, head_dim, torch.device("cpu"))
        close(positions.apply_rope(data[f"rope_in_{size}"], rope), f"rope_out_{size}")
    norm = torch.nn.RMSNorm(64, eps=1e-6)
    norm.weight.data = data["rms_weight"]
    close(norm(data["rms_in"]), "rms_out")


def test_a_model_on_the_meta_device_is_built_without_pytorchs_compiler():
    """Importing it takes seconds, of which loading a file would be made."""
    code = (
        "import sys\n"
        "from skyreels_model.config import ModelConfig\n"
        "from skyreels_model.model import SkyReelsModel\n"
        "from skyreels_model.text_encoder import UMT5Config, UMT5Encoder\n"
        "SkyReelsModel(ModelConfig(fps_embedding=True), device='meta')\n"
        "UMT5Encoder(UMT5Config(64, 32, 32, 64, 2, 1), device='meta')\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
