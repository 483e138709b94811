"""The diffusion transformer against the reference's numbers."""

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model import layers

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

    close(layers.sinusoid(data["t"], 256), "sinusoid_f32")
    grid = (3, 2, 3)
    for size, head_dim in (("hd128", 128), ("small", 40)):
        rope = layers.rope_table(grid, head_dim, torch.device("cpu"))
        close(layers.apply_rope(data[f"rope_in_{size}"], rope), f"rope_out_{size}")
    norm = torch.nn.RMSNorm(64, eps=1e-6)
    norm.weight.data = data["rms_weight"]
    close(norm(data["rms_in"]), "rms_out")
