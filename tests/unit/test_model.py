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
