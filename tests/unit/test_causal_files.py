"""Files of causal distillations of Wan 2.1, such as Self-Forcing, as their trainers write them."""

import pathlib

import pytest
import torch
from torch import nn

from skyreels_model.config import ModelConfig
from skyreels_model.files import checkpoint, loading
from skyreels_model.model import SkyReelsModel, identity, names
from toy.random_weights import dit_shapes

CAUSAL = ModelConfig(dim=128, ffn_dim=96, num_heads=1, num_layers=2, text_dim=32)


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = dit_shapes(CAUSAL).items()
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes}


def test_a_critic_is_never_meant(weights, tmp_path):
    """Self-Forcing writes these two before its averaging begins."""
    critic = {key: value + 1 for key, value in weights.items()}
    torch.save({"generator": weights, "critic": critic}, tmp_path / "model.pt")
    file = checkpoint.read(tmp_path / "model.pt")
    assert all(torch.equal(file.tensors[key], weights[key]) for key in weights)
    assert file.note == "of its sets (critic, generator) generator was taken"


@pytest.mark.parametrize("critic", ["critic_ema", "critic"])
def test_a_critic_is_known_whatever_its_name_says_beside_that(weights, tmp_path, critic):
    other = {key: value + 1 for key, value in weights.items()}
    sets = {"generator_ema": {"model": weights}, critic: {"model": other}}
    torch.save(sets, tmp_path / "model.pt")
    tensors = checkpoint.read(tmp_path / "model.pt").tensors
    assert all(torch.equal(tensors[key], weights[key]) for key in weights)


class Generator(nn.Module):
    """As Self-Forcing wraps its transformer."""

    def __init__(self, state):
        super().__init__()
        self.model = SkyReelsModel(CAUSAL)
        loading.load_weights(self.model, state)


def sharded(state):
    """As PyTorch's FSDP names what lies in wrapped modules, whole and by layer."""
    return {
        key.replace("model.", "model._fsdp_wrapped_module.", 1).replace(
            ".self_attn.", "._fsdp_wrapped_module.self_attn."
        ): value
        for key, value in state.items()
    }


# As the trainers and the readers of guandeh17/Self-Forcing and of its descendants name their sets.
PUBLISHED_FILES = {
    "self_forcing_dmd.pt": lambda own, other: {"generator_ema": own},
    "Self-Forcing/checkpoints/self_forcing_sid.pt": lambda own, other: {
        "generator": other, "critic": other, "generator_ema": sharded(own),
    },
    "causal-forcing/chunkwise.pt": lambda own, other: {"generator": own, "step": 150},
    "rolling_forcing_dmd.pt": lambda own, other: {
        "generator_ema": sharded(own), "critic_optimizer": {"state": {}, "param_groups": [{}]},
    },
    "longlive_base.pt": lambda own, other: {"generator": sharded(own)},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED_FILES)
def test_causal_distillations_as_they_are_published(weights, name, tmp_path):
    own = Generator(weights).state_dict()
    other = {key: value + 1 for key, value in own.items()}
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(PUBLISHED_FILES[name](own, other), path)
    own_names = names.transformer_tensors(checkpoint.read(path).tensors)
    model = SkyReelsModel(ModelConfig.from_state_dict(own_names), device="meta")
    report = loading.load_weights(model, own_names)
    assert report.matched == len(weights) and not report.unexpected
    assert all(torch.equal(v, own[f"model.{k}"]) for k, v in model.state_dict().items())
    assert identity.variant(model.config, path) == identity.CAUSAL
    assert identity.family(path) == "Wan 2.1"


def test_a_distillation_with_its_settings_in_it_is_refused(weights, tmp_path):
    """They are objects, which would run code when read."""
    torch.save({"generator": weights, "config": pathlib.PurePath("x")}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt holds more than tensors \(it would run code"):
        checkpoint.read(tmp_path / "model.pt")
