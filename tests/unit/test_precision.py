"""Rounding in 16 bits: no more of it than in the reference, at any depth."""

import pytest
import torch

from devtools.rounding import Reference, Size, random_inputs, random_model, rounding_errors
from skyreels_model.config import ModelConfig
from skyreels_model.model.positions import apply_rope, rope_table


def config_of(layers, dim=256, **more):
    sizes = {"dim": dim, "ffn_dim": 4 * dim, "num_heads": 2, "num_layers": layers, "text_dim": 64}
    return ModelConfig(**sizes, **more)


IMAGE = {"model_type": "i2v", "in_dim": 36}


@pytest.mark.parametrize("kind", [{}, IMAGE])
def test_the_reference_here_differs_in_rounding_alone(kind):
    model = random_model(config_of(2, **kind))
    given = [t.float() for t in random_inputs(model.config, Size())]
    given[2] = given[2][0]
    found = Reference(model, torch.float32)(*given)
    assert torch.allclose(found, model(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [config_of(1), config_of(4), config_of(12), config_of(4, **IMAGE)], ids=repr
)
def test_bf16_is_no_less_precise_than_the_reference(config):
    """Alone, and guided, which shows the difference of two answers several times as large."""
    for ours, theirs in zip(*rounding_errors(config), strict=True):
        assert 0 < ours / theirs <= 1.0


@pytest.mark.parametrize("overwrite", [False, True])
def test_real_and_complex_rotations_give_the_same_bits(overwrite, monkeypatch):
    rope = rope_table((3, 4, 5), 128, torch.device("cpu"))
    x = torch.randn(2, 60, 3, 128).bfloat16()
    expected = apply_rope(x.clone(), rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the way of other devices
    assert torch.equal(apply_rope(x.clone(), rope, overwrite), expected)
