"""What a forward in bf16 rounds: ours, and the reference's, against float32.

The reference's semantics are written anew here, on the weights of our model.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from skyreels_model.config import CLIP_DIM, ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.memory import CLIP_TOKENS
from skyreels_model.model.network import RunBlock, run_directly
from skyreels_model.model.positions import rope_table, sinusoid

GUIDANCE = 6.0


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


def turn(x: Tensor, rope: Tensor) -> Tensor:
    """x (B, L, heads, d) float32, turned by matrices."""
    return torch.einsum("blhdj,lodij->blhdi", x.unflatten(3, (-1, 2)), rope[0]).flatten(3)


class Reference:
    """What the reference rounds, and where: its forward under the bf16 autocast of its scripts.

    Products and attention are rounded to bf16, sums in a block are float32, and the stream is
    rounded once a block. Time, modulation and head are float32, but for the time's sinusoid.
    Source: SkyworkAI/SkyReels-V2, `skyreels_v2_infer/modules/transformer.py`.
    """

    def __init__(self, model: SkyReelsModel, narrow: torch.dtype = torch.bfloat16) -> None:
        self.model, self.heads, self.narrow = model, model.config.num_heads, narrow

    def project(self, layer: nn.Module, x: Tensor) -> Tensor:
        return F.linear(x.to(self.narrow), layer.weight, layer.bias)

    def exactly(self, layer: nn.Module, x: Tensor) -> Tensor:
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())

    def normed(self, layer: nn.Module, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], layer.weight.float(), 1e-6)

    def affine(self, layer: nn.Module, x: Tensor, eps: float) -> Tensor:
        return layer_norm(x, eps) * layer.weight.float() + layer.bias.float()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rope: Tensor | None = None) -> Tensor:
        """q and k stay float32 from their norms to the attention, which takes bf16."""
        q, k, v = (t.unflatten(2, (self.heads, -1)) for t in (q, k, v))
        if rope is not None:
            q, k = turn(q, rope), turn(k, rope)
        q, k, v = (t.to(self.narrow).transpose(1, 2) for t in (q, k, v))
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def see_tokens(self, layer: nn.Module, x: Tensor, rope: Tensor) -> Tensor:
        q, k, v = (self.project(one, x) for one in (layer.q, layer.k, layer.v))
        q, k = self.normed(layer.norm_q, q), self.normed(layer.norm_k, k)
        return self.project(layer.o, self.attend(q, k, v, rope))

    def see_context(
        self, layer: nn.Module, x: Tensor, text: Tensor, image: Tensor | None
    ) -> Tensor:
        q = self.normed(layer.norm_q, self.project(layer.q, x))
        k = self.normed(layer.norm_k, self.project(layer.k, text))
        out = self.attend(q, k, self.project(layer.v, text))
        if image is not None:
            k = self.normed(layer.norm_k_img, self.project(layer.k_img, image))
            out = out + self.attend(q, k, self.project(layer.v_img, image))
        return self.project(layer.o, out)

    def block(
        self,
        block: nn.Module,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        image: Tensor | None,
        rope: Tensor,
    ) -> Tensor:
        e = block.modulation.weight.float()[:, None] + time  # (B, F, 6, D)
        e = e.repeat_interleave(x.shape[1] // e.shape[1], dim=1).unbind(2)
        y = self.see_tokens(block.self_attn, layer_norm(x) * (1 + e[1]) + e[0], rope)
        x = x.float() + y.float() * e[2]
        normed = self.affine(block.norm3, x.to(self.narrow), 1e-6)
        x = x + self.see_context(block.cross_attn, normed, text, image)
        hidden = self.project(block.ffn[0], layer_norm(x) * (1 + e[4]) + e[3])
        y = self.project(block.ffn[2], gelu(hidden, approximate="tanh"))
        return (x + y.float() * e[5]).to(self.narrow)

    def embed_image(self, clip_fea: Tensor) -> Tensor:
        """(B, 257, 1280) -> (B, 257, D)."""
        first, wide, _, narrow, last = self.model.img_emb.proj
        hidden = gelu(self.project(wide, self.affine(first, clip_fea, 1e-5)))
        return self.affine(last, self.project(narrow, hidden), 1e-5)

    def __call__(
        self, x: Tensor, timestep: Tensor, text: Tensor, clip_fea: Tensor | None = None
    ) -> Tensor:
        """As our model's forward, per-frame timesteps (B, F)."""
        model = self.model
        rows = sinusoid(timestep.flatten(), model.config.freq_dim).to(self.narrow)
        first, _, second = model.time_embedding
        e = self.exactly(second, F.silu(self.exactly(first, rows))).unflatten(0, timestep.shape)
        time = self.exactly(model.time_projection[1], F.silu(e)).unflatten(2, (6, -1))
        first, _, second = model.text_embedding
        text = self.project(second, gelu(self.project(first, text), approximate="tanh"))
        image = None if clip_fea is None else self.embed_image(clip_fea)
        patches = model.patch_embedding(x)
        grid = patches.shape[2:]
        rope = rope_table(grid, model.config.head_dim, x.device)
        stream = patches.flatten(2).transpose(1, 2)
        for block in model.blocks:
            stream = self.block(block, stream, time, text, image, rope)
        offset = model.head.modulation.weight.float()[:, None] + e[:, :, None]
        shift, scale = offset.repeat_interleave(grid[1] * grid[2], dim=1).unbind(2)
        out = self.exactly(model.head.head, layer_norm(stream) * (1 + scale) + shift)
        return model._unpatchify(out, grid)


@dataclass(frozen=True)
class Size:
    """Latent frames, height and width, and rows of text."""

    frames: int = 3
    height: int = 8
    width: int = 8
    rows: int = 16


class Errors(NamedTuple):
    """Relative errors against float32, of one answer, and of answers guided at 6."""

    alone: float
    guided: float


def random_model(config: ModelConfig, seed: int = 0) -> SkyReelsModel:
    """Weights in bf16 with PyTorch's own distributions; modulations as at the start of training."""
    torch.manual_seed(seed)
    model = SkyReelsModel(config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            parameter.normal_(std=config.dim**-0.5)
        parameter.copy_(parameter.bfloat16())
    return model


def random_inputs(config: ModelConfig, size: Size) -> tuple[Tensor, ...]:
    """x, timestep and two prompts' text, rounded to bf16; an I2V model's image after them."""
    x = torch.randn(1, config.in_dim, size.frames, size.height, size.width).bfloat16()
    timestep = torch.linspace(999, 300, size.frames)[None].round()
    text = torch.randn(2, 1, size.rows, config.text_dim).bfloat16()
    if config.model_type == "t2v":
        return x, timestep, text
    return x, timestep, text, torch.randn(1, CLIP_TOKENS, CLIP_DIM).bfloat16()


def rounding_errors(
    config: ModelConfig, size: Size = Size(), seed: int = 0, run_block: RunBlock = run_directly
) -> tuple[Errors, Errors]:
    """How far a bf16 velocity is from float32's with equal weights: ours, and the reference's.

    run_block: how our blocks run in bf16.
    """
    exact = random_model(config, seed)
    given = random_inputs(config, size)
    with torch.no_grad():
        right = _velocities(exact, [t.float() for t in given])
        model = SkyReelsModel(config, dtype=torch.bfloat16, device="meta").requires_grad_(False)
        model.to_empty(device="cpu").load_state_dict(copy.copy(exact.state_dict()))
        del exact
        narrow = functools.partial(model, run_block=run_block)
        found = _velocities(narrow, given), _velocities(Reference(model), given)
    ours, theirs = (Errors(*map(_error, pair, right)) for pair in found)
    return ours, theirs


def _velocities(
    model: Callable[..., Tensor], given: tuple[Tensor, ...] | list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The velocity for the first prompt, and guided away from the second."""
    x, timestep, text, *image = given
    positive, negative = (model(x, timestep, one, *image).float() for one in text)
    return positive, negative + GUIDANCE * (positive - negative)


def _error(found: Tensor, right: Tensor) -> float:
    return float((found - right).norm() / right.norm())
