"""A block of the transformer whose elementwise parts are kernels: a `run_block` for forwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..model.layers import (
    Block,
    BlockInputs,
    CrossAttention,
    FeedForward,
    SelfAttention,
    gated_add,
    hidden_pieces,
)
from .fused import Affine, Kernels

NARROW = (torch.bfloat16, torch.float16)


class Weights:
    """How a kernel is given a layer's numbers; a host, which casts and moves them, has another."""

    def is_product(self, layer: nn.Module) -> bool:
        """Whether a layer is a product with its weight, and a bias, and nothing else."""
        return type(layer) is nn.Linear and layer.bias is not None

    @contextlib.contextmanager
    def borrow(self, layer: Any, like: Tensor) -> Iterator[tuple[Tensor, Any]]:
        """Weight and bias of a layer where `like` is, as long as the context lasts."""
        yield layer.weight, getattr(layer, "bias", None)


class FusedBlocks:
    """Runs blocks by kernels where that is the same, and plainly where it may not be.

    It may not where gradients are wanted, a compiler looks on, another node wants the stream
    between attention and feed-forward, or something has been put in a layer's place or around it.
    """

    def __init__(self, kernels: Kernels, weights: Weights | None = None) -> None:
        self.kernels, self.weights = kernels, weights or Weights()

    def __call__(self, _index: int, block: nn.Module, x: Tensor, inputs: BlockInputs) -> Tensor:
        if is_untouched(block) and fits(block, x, inputs):
            return self.run(block, x, inputs)
        out: Tensor = block(x, inputs)
        return out

    def run(self, block: Any, x: Tensor, given: BlockInputs) -> Tensor:
        """As the block's own forward: x (B, L, D) float32, written over."""
        kernels, dtype = self.kernels, given.dtype
        layer, ffn = block.self_attn, block.ffn
        modulation = block.modulation(given.modulation).contiguous()
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(2)  # (B, T, D) each
        y = kernels.norm(x, Affine(scale1, shift1, 1.0), layer.eps, dtype)
        q = self.norm_turn(layer.norm_q, layer.q(y), given.rope)
        k = self.norm_turn(layer.norm_k, layer.k(y), given.rope)
        v = layer.v(y)
        del y
        out = given.attend_self(q, k, v, layer.heads)
        del q, k, v
        y = layer.o(out)
        del out
        with self.weights.borrow(block.norm3, y) as (weight, bias):
            y = kernels.add_norm(x, y, gate1, Affine(weight, bias, 0.0), block.norm3.eps)
        y = block.cross_attn(y, given)
        y = kernels.add_norm(x, y, None, Affine(scale2, shift2, 1.0), ffn.eps)
        count = hidden_pieces(x.shape[0] * x.shape[1], x.shape[2], ffn.hidden, y.itemsize)
        if count == 1:
            hidden = self.hidden(ffn[0], y)
            del y
            y = ffn[2](hidden)
            del hidden
        else:
            for part in y.flatten(0, 1).tensor_split(count):
                self.project(ffn[2], self.hidden(ffn[0], part), part)
        return gated_add(x, y, gate2, overwrite=True)

    def norm_turn(self, norm: Any, x: Tensor, rope: Tensor) -> Tensor:
        """Queries or keys (B, L, D), normed and turned, in place."""
        with self.weights.borrow(norm, x) as (weight, _):
            return self.kernels.norm_turn(x, weight, rope, norm.eps)

    def hidden(self, layer: nn.Module, y: Tensor) -> Tensor:
        """The hidden layer of a feed-forward, (…, hidden), after its GELU."""
        product = self.kernels.product_gelu
        if product is None or not self.is_product(layer):
            return torch.ops.aten.gelu_(layer(y), approximate="tanh")
        with self.weights.borrow(layer, y) as (weight, bias):
            return product(y.flatten(0, -2), weight, bias).unflatten(0, y.shape[:-1])

    def project(self, layer: nn.Module, x: Tensor, out: Tensor) -> None:
        """A layer's result for x (n, hidden), in `out`."""
        if not self.is_product(layer):
            out.copy_(layer(x))
            return
        with self.weights.borrow(layer, x) as (weight, bias):
            torch.addmm(bias, x, weight.t(), out=out)

    def is_product(self, layer: nn.Module) -> bool:
        """Whether PyTorch's own product with its weight is what a layer does."""
        return self.weights.is_product(layer) and is_unhooked(layer)


def fits(block: Any, x: Tensor, given: BlockInputs) -> bool:
    """Whether the kernels can do what a block is asked to."""
    if not given.overwrite or given.after_context is not None or given.dtype not in NARROW:
        return False
    rope, modulation, batch = given.rope, given.modulation, x.shape[0]
    if not x.dtype == modulation.dtype == rope.dtype == torch.float32:
        return False
    # Nodes that replace blocks may hand on others than the model's.
    framed = modulation.ndim == 4 and modulation.shape == (
        batch,
        modulation.shape[1],
        6,
        x.shape[2],
    )
    framed = framed and x.shape[1] % modulation.shape[1] == 0
    pairs = x.shape[2] // block.self_attn.heads // 2
    turns = rope.shape == (1, x.shape[1], 1, pairs, 2, 2)
    return framed and turns and x.is_contiguous() and rope.is_contiguous()


def is_untouched(block: Any) -> bool:
    """Whether a block is ours, and so are those of its layers that are not called as they are."""
    if type(block) is not Block or type(block.ffn) is not FeedForward:
        return False
    layer, cross = block.self_attn, block.cross_attn
    if type(layer) is not SelfAttention or type(cross) is not CrossAttention:
        return False
    norms = layer.norm_q, layer.norm_k
    if not isinstance(block.norm3, nn.LayerNorm) or any(
        not isinstance(n, nn.RMSNorm) for n in norms
    ):
        return False
    # What q and k return is written over, so that no one may have kept it.
    own = block, layer, *norms, layer.q, layer.k, block.norm3, block.ffn, block.ffn[1]
    return all(map(is_unhooked, own))


def is_unhooked(layer: nn.Module) -> bool:
    """Whether nothing was put around a layer's forward or in its place, as a compiled one is."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return not (hooks or "forward" in vars(layer) or layer._compiled_call_impl is not None)
