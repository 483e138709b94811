"""Rounding in 16 bits: no more of it than in the reference, at any depth."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import gelu, scaled_dot_product_attention

from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.positions import apply_rope, rope_table, sinusoid


def norm(x):
    return F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)


def turn(x, rope):
    """x (B, L, heads, d) float32, turned by matrices."""
    return torch.einsum("blhdj,lodij->blhdi", x.unflatten(3, (-1, 2)), rope[0]).flatten(3)


class Reference:
    """What the reference rounds, and where: its forward under the bf16 autocast of its scripts.

    Products and attention are rounded to bf16, sums in a block are float32, and the stream is
    rounded once a block. Time, modulation and head are float32, but for the time's sinusoid.
    """

    def __init__(self, model, narrow=torch.bfloat16):
        self.model, self.heads, self.narrow = model, model.config.num_heads, narrow

    def project(self, layer, x):
        return F.linear(x.to(self.narrow), layer.weight, layer.bias)

    def exactly(self, layer, x):
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())

    def attend(self, layer, x, context, rope=None):
        """q and k stay float32 from their norms to the attention, which takes bf16."""
        q, k, v = (
            self.project(one, given)
            for one, given in ((layer.q, x), (layer.k, context), (layer.v, context))
        )
        q, k = (
            F.rms_norm(t.float(), t.shape[-1:], one.weight.float(), 1e-6)
            for t, one in ((q, layer.norm_q), (k, layer.norm_k))
        )
        q, k, v = (t.unflatten(2, (self.heads, -1)) for t in (q, k, v))
        if rope is not None:
            q, k = turn(q, rope), turn(k, rope)
        q, k, v = (t.to(self.narrow).transpose(1, 2) for t in (q, k, v))
        out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.project(layer.o, out)

    def block(self, block, x, time, context, rope, tokens):
        e = block.modulation.weight.float()[:, None] + time  # (B, F, 6, D)
        e = e.repeat_interleave(tokens, dim=1).unbind(2)
        y = self.attend(block.self_attn, *[norm(x) * (1 + e[1]) + e[0]] * 2, rope)
        x = x.float() + y.float() * e[2]
        affine = block.norm3
        given = norm(x.to(self.narrow)) * affine.weight.float() + affine.bias.float()
        x = x + self.attend(block.cross_attn, given, context)
        hidden = self.project(block.ffn[0], norm(x) * (1 + e[4]) + e[3])
        y = self.project(block.ffn[2], gelu(hidden, approximate="tanh"))
        return (x + y.float() * e[5]).to(self.narrow)

    def __call__(self, x, timestep, text):
        model = self.model
        rows = sinusoid(timestep.flatten(), model.config.freq_dim).to(self.narrow)
        first, _, second = model.time_embedding
        e = self.exactly(second, F.silu(self.exactly(first, rows))).unflatten(0, timestep.shape)
        time = self.exactly(model.time_projection[1], F.silu(e)).unflatten(2, (6, -1))
        first, _, second = model.text_embedding
        context = self.project(second, gelu(self.project(first, text), approximate="tanh"))
        patches = model.patch_embedding(x)
        grid = patches.shape[2:]
        rope, tokens = rope_table(grid, model.config.head_dim, x.device), grid[1] * grid[2]
        stream = patches.flatten(2).transpose(1, 2)
        for block in model.blocks:
            stream = self.block(block, stream, time, context, rope, tokens)
        offset = model.head.modulation.weight.float()[:, None] + e[:, :, None]
        shift, scale = offset.repeat_interleave(tokens, dim=1).unbind(2)
        out = self.exactly(model.head.head, norm(stream) * (1 + scale) + shift)
        return model._unpatchify(out, grid)


def random_model(config, seed=0):
    """Weights in bf16 with PyTorch's own distributions; modulations as at the start of training."""
    torch.manual_seed(seed)
    model = SkyReelsModel(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            parameter.normal_(std=config.dim**-0.5)
        parameter.copy_(parameter.bfloat16())
    return model


def inputs(config, frames=3, height=8, width=8, rows=16):
    x, text = torch.randn(1, 16, frames, height, width), torch.randn(1, rows, config.text_dim)
    return x.bfloat16(), torch.linspace(999, 300, frames)[None].round(), text.bfloat16()


def errors(config, given=inputs, seed=0):
    """Relative errors against float32 of the velocity in bf16: ours, and the reference's."""
    exact = random_model(config, seed)
    x, timestep, text = given(config)
    expected = exact(x.float(), timestep, text.float())
    model = SkyReelsModel(config, dtype=torch.bfloat16).requires_grad_(False)
    model.load_state_dict(copy.copy(exact.state_dict()))
    del exact
    with torch.no_grad():
        found = model(x, timestep, text), Reference(model)(x, timestep, text)
    return [float((v.float() - expected).norm() / expected.norm()) for v in found]


def config_of(layers, dim=256):
    return ModelConfig(dim=dim, ffn_dim=4 * dim, num_heads=2, num_layers=layers, text_dim=64)


def test_the_reference_here_differs_in_rounding_alone():
    model = random_model(config_of(2))
    x, timestep, text = inputs(model.config)
    x, text = x.float(), text.float()
    found = Reference(model, torch.float32)(x, timestep, text)
    assert torch.allclose(found, model(x, timestep, text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 4, 12])
def test_bf16_is_no_less_precise_than_the_reference(layers):
    ours, theirs = errors(config_of(layers))
    assert 0 < ours / theirs <= 1.0


@pytest.mark.parametrize("overwrite", [False, True])
def test_real_and_complex_rotations_give_the_same_bits(overwrite, monkeypatch):
    rope = rope_table((3, 4, 5), 128, torch.device("cpu"))
    x = torch.randn(2, 60, 3, 128).bfloat16()
    expected = apply_rope(x.clone(), rope)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the way of other devices
    assert torch.equal(apply_rope(x.clone(), rope, overwrite), expected)
