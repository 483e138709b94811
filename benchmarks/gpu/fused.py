"""Our kernels at the size of a 14B stream, beside PyTorch's operators, and a block by either."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, rms_norm

from skyreels_model.attention import sdpa
from skyreels_model.config import ModelConfig
from skyreels_model.kernels import FusedBlocks, Kernels, find_kernels, plain
from skyreels_model.kernels.fused import Affine
from skyreels_model.model import layers, positions
from skyreels_model.model.network import RunBlock, run_directly

from . import networks
from .run import Run
from .timing import error, short_seconds

EPS = 1e-6
# compare(what, call, right, streams): a row for one way to compute what is right.
Compare = Callable[[str, Callable[[], Tensor], Tensor, float], None]


def kernels_of(run: Run, config: ModelConfig) -> Kernels:
    """Those that passed their test on this card; in a rehearsal, their plain twins.

    Raises RuntimeError where there are none; the log says why.
    """
    if run.rehearse:
        return plain.PLAIN
    found = find_kernels(run.device, run.dtype, config.dim, config.head_dim)
    if found is None:
        raise RuntimeError("no Triton, or a kernel failed its test: log.txt says which")
    return found


def describe(kernels: Kernels) -> str:
    return "passed" if kernels.product_gelu else "passed, but for the product with its GELU"


def measure(run: Run, compare: Compare) -> None:
    config = networks.config_of("14B", run.rehearse)
    kernels = run.attempt("kernels", functools.partial(kernels_of, run, config))
    if kernels is None:
        return
    grid = (run.size[0], run.size[1] // 2, run.size[2] // 2)
    x = torch.randn(1, math.prod(grid), config.dim, device=run.device)
    y = torch.randn_like(x).bfloat16()
    run.attempt("borders", lambda: borders(compare, kernels, x, y, grid[0]))
    table = positions.rope_table(grid, config.head_dim, run.device)
    run.attempt("norm and rotation", lambda: turns(compare, kernels, y, table))
    run.attempt("product and GELU", lambda: products(run, kernels, config, y[0]))
    run.attempt("blocks", lambda: blocks(run, kernels, config, x, grid))


def borders(compare: Compare, kernels: Kernels, x: Tensor, y: Tensor, frames: int) -> None:
    """From a layer's result to the next one's input: 6 streams by a kernel, 12 by operators."""
    modulation = torch.randn(1, frames, 6, x.shape[2], device=x.device)
    shift, scale, gate = modulation.unbind(2)[:3]
    spread = functools.partial(torch.repeat_interleave, repeats=x.shape[1] // frames, dim=1)
    total = x + y * spread(gate)
    normed = layer_norm(total, x.shape[-1:], eps=EPS)
    right = normed * (1 + spread(scale)) + spread(shift)
    del total, normed
    affine, kept = Affine(scale, shift, 1.0), x.clone()

    def by_operators() -> Tensor:
        layers.gated_add(kept, y, gate, True)
        return layers.modulate(kept, shift, scale, EPS, y.dtype, True)

    # In place, so that each timed call adds once more; the error is that of the first.
    compare("sum, norm and modulation, PyTorch's", by_operators, right, 6)
    kept.copy_(x)
    fused = lambda: kernels.add_norm(kept, y, gate, affine, EPS)  # noqa: E731
    compare("sum, norm and modulation, kernel", fused, right, 6)


def turns(compare: Compare, kernels: Kernels, x: Tensor, table: Tensor) -> None:
    """Norm and rotation of queries: 2 streams by a kernel, 4 by operators and the host's."""
    weight = (1 + 0.1 * torch.randn(x.shape[2], device=x.device)).to(x.dtype)
    heads = 2 * table.shape[3]
    normed = rms_norm(x.float(), x.shape[-1:], weight.float(), EPS).unflatten(2, (-1, heads))
    right = positions.apply_rope(normed, table).flatten(2)
    del normed

    def by_operators() -> Tensor:
        made = rms_norm(x, x.shape[-1:], weight, EPS).unflatten(2, (-1, heads))
        return positions.apply_rope(made, table, True).flatten(2)

    compare("norm and rotation, PyTorch's", by_operators, right, 2)
    kept = x.clone()
    fused = lambda: kernels.norm_turn(kept, weight, table, EPS)  # noqa: E731
    compare("norm and rotation, kernel", fused, right, 2)


def products(run: Run, kernels: Kernels, config: ModelConfig, x: Tensor) -> None:
    """The first product of a feed-forward, with its GELU after it and in it."""
    weight = torch.randn(config.ffn_dim, config.dim, device=x.device).to(x.dtype) * 0.02
    bias = torch.randn(config.ffn_dim, device=x.device).to(x.dtype)
    few = x[: min(len(x), 1024)].float()
    right = gelu(linear(few, weight.float(), bias.float()), approximate="tanh")
    gelu_ = functools.partial(torch.ops.aten.gelu_, approximate="tanh")
    ways = {"product, then its GELU": lambda: gelu_(linear(x, weight, bias))}
    if kernels.product_gelu:
        product = kernels.product_gelu
        ways["product with its GELU"] = lambda: product(x, weight, bias)
    for what, call in ways.items():
        wrong = error(call()[: len(few)], right)
        run.row(what=what, ms=1000 * short_seconds(run.device, call, 5), error=wrong)


def blocks(
    run: Run, kernels: Kernels, config: ModelConfig, x: Tensor, grid: tuple[int, int, int]
) -> None:
    """A block of random weights over the stream x (1, L, D), which it writes over."""
    config = dataclasses.replace(config, num_layers=1)
    state = networks.random_weights(config, torch.bfloat16, run.device)
    block = networks.ours(config, state, torch.bfloat16).blocks[0]
    given = layers.BlockInputs(
        modulation=torch.randn(1, grid[0], 6, config.dim, device=run.device),
        context=torch.randn(1, 512, config.dim, device=run.device).bfloat16(),
        rope=positions.rope_table(grid, config.head_dim, run.device),
        image_tokens=0,
        attend_self=sdpa,
        attend_context=sdpa,
        may_overwrite=True,
    )
    fused: RunBlock = FusedBlocks(kernels)
    usual = run_directly(0, block, x.clone(), given)
    for what, way in {"a block, PyTorch's": run_directly, "a block, kernels": fused}.items():
        wrong, kept = error(way(0, block, x.clone(), given), usual), x.clone()
        call = functools.partial(way, 0, block, kept, given)
        run.row(what=what, ms=1000 * short_seconds(run.device, call, 3), error=wrong)
