"""The diffusion transformer against the reference's numbers."""

import subprocess
import sys
from pathlib import Path

import golden_data
import pytest
import torch
from golden_data import models

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


@pytest.mark.slow
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


def text_of(*lengths, rows=8):
    """Rows of text (B, rows, 4), zero after each length."""
    text = torch.arange(1.0, len(lengths) * rows * 4 + 1).view(-1, rows, 4)
    return text * (torch.arange(rows)[:, None] < torch.tensor(lengths)[:, None, None])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (text_of(3), 4),
        (text_of(3, 5), 6),
        (text_of(0), 1),
        (text_of(8), 8),
        (text_of(7), 8),
        (torch.ones(2, 8, 4), 1),
        (torch.full((1, 8, 4), torch.nan), 8),
        (torch.zeros(1, 8, 4, device="meta"), 8),
    ],
)
def test_rows_that_tell_all_of_a_text(text, count):
    with torch.no_grad():
        assert layers.count_distinct(text) == count
        if not text.is_meta:
            whole = layers.repeat_last(text[:, :count], 8)
            assert torch.equal(whole, text) or text.isnan().all()
    assert layers.count_distinct(text) == 8  # each row has a gradient of its own


def test_equal_rows_of_text_are_computed_once():
    """In the embedding and in each block's keys and values; the result is that of all rows."""
    case = golden_data.case(golden_data.names("dit")[0])
    model, data = models.dit(case), golden_data.tensors(golden_data.names("dit")[0])
    text = golden_data.padded_text(data["context_rows"])
    seen = []
    for layer in (
        model.text_embedding[0],
        model.blocks[0].cross_attn.k,
        model.blocks[0].cross_attn.v,
    ):
        layer.register_forward_hook(lambda _layer, given, _out: seen.append(given[0].shape[1]))
    expected = model(data["x"], data["t"], text)
    with torch.no_grad():
        out = model(data["x"], data["t"], text)
    used = data["context_rows"].shape[1]
    assert seen == [512] * 3 + [used + 1] * 3
    assert torch.allclose(out, expected, atol=1e-5)
