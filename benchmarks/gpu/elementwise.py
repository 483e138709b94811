"""Norms and rotations at the size of a 14B stream: what we run, and what could be run instead.

Our own kernels come first.

Bytes are the fewest that the result needs: each input read once, the output written once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm

from skyreels_model.model import layers, positions

from . import comfyui, fused
from .card import ceilings
from .run import Run
from .timing import error, short_seconds

DIM, HEAD_DIM, EPS = 5120, 128, 1e-6
Call = Callable[[], Tensor]


def measure(run: Run) -> None:
    run.attempt(
        "ComfyUI",
        lambda: comfyui.boot_for(run.packed, run.rehearse),
    )
    dim = 256 if run.rehearse else DIM
    frames = run.size[0]
    tokens = frames * run.size[1] * run.size[2] // 4
    x = torch.randn(1, tokens, dim, device=run.device, dtype=torch.bfloat16)
    fused.measure(run, functools.partial(compare, run))
    run.attempt("rotations", lambda: rotations(run, x))
    run.attempt("adaptive norms", lambda: adaptive_norms(run, x, frames))
    run.attempt("RMS norms", lambda: rms_norms(run, x))
    run.attempt("the rest", lambda: rest(run, x, frames))


def compare(run: Run, what: str, call: Call, right: Tensor, streams: float) -> None:
    """A row for one way to compute what `right` is; streams: tensors of its size moved at least."""

    def timed() -> tuple[float, float]:
        wrong = error(call(), right)
        return short_seconds(run.device, call), wrong

    figures = run.attempt(what, timed)
    if figures is None:
        return
    taken, wrong = figures
    rate = streams * right.numel() * 2 / taken
    run.row(
        **{"what": what, "ms": 1000 * taken, "GB/s": rate / 1e9},
        **{"of ceiling": rate / ceilings(run.device)["copy"], "error": wrong},
    )


def real_rotation(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Adjacent pairs of x (B, L, heads, d) turned in float32, without complex numbers."""
    a, b = x.float().unflatten(3, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(3).to(x.dtype)


def rotations(run: Run, x: Tensor) -> None:
    grid = (run.size[0], run.size[1] // 2, run.size[2] // 2)
    table = positions.rope_table(grid, HEAD_DIM, run.device)
    heads = x.unflatten(2, (-1, HEAD_DIM))  # (1, L, heads, d)
    angles = _angles(grid, run.device)  # (L, 1, d / 2)
    cos, sin = angles.cos().float(), angles.sin().float()
    right = real_rotation(heads.double(), cos.double(), sin.double())
    rotate = getattr(positions, "rotate", positions.apply_rope)
    compare(run, f"rotation, ours ({rotate.__name__})", lambda: rotate(heads, table), right, 2)
    compare(run, "rotation, real", lambda: real_rotation(heads, cos, sin), right, 2)
    if run.device.type == "cuda":
        compiled = torch.compile(real_rotation)
        compare(run, "rotation, real, compiled", lambda: compiled(heads, cos, sin), right, 2)
    # (1, L, 1, d / 2, 2, 2), as the host's own Wan hands it on
    matrices = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))[None]
    kitchen = _kitchen()
    compare(run, "rotation, comfy_kitchen", lambda: kitchen.apply_rope1(heads, matrices), right, 2)
    # In place, so that each timed call turns once more; its error is that of a copy.
    compare(
        run,
        "rotation, comfy_kitchen, a copy turned in place",
        lambda: kitchen.apply_rope1_(heads.clone(), matrices),
        right,
        2,
    )


def _angles(grid: tuple[int, int, int], device: torch.device) -> Tensor:
    parts = []
    for axis, (size, width) in enumerate(zip(grid, positions.rope_axes(HEAD_DIM), strict=True)):
        steps = torch.arange(0, width, 2, dtype=torch.float64, device=device) / width
        place = torch.arange(size, dtype=torch.float64, device=device)
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        angle = place[:, None] * positions.ROPE_THETA**-steps
        parts.append(angle.reshape(shape).expand(*grid, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)[:, None]


def _kitchen() -> object:
    import comfy_kitchen

    return comfy_kitchen


def adaptive_norms(run: Run, x: Tensor, frames: int) -> None:
    shift, scale = torch.randn(2, 1, frames, x.shape[2], device=run.device)  # (1, F, D) each
    framed = x.unflatten(1, (frames, -1))  # (1, F, L / F, D)
    normed = layer_norm(framed.float(), x.shape[-1:], eps=EPS)
    right = (normed * (1 + scale[:, :, None]) + shift[:, :, None]).flatten(1, 2)
    del normed
    plain = functools.partial(layer_norm, x, x.shape[-1:], eps=EPS)
    compare(run, "layer norm alone", plain, layer_norm(x.double(), x.shape[-1:], eps=EPS), 2)
    ours = lambda: layers.modulate(x, shift, scale, EPS, x.dtype, True)  # noqa: E731
    compare(run, "adaptive norm, ours", ours, right, 2)
    kitchen, low = _kitchen(), x.dtype
    a, b = scale[:, :, None].to(low), shift[:, :, None].to(low)
    fused = lambda: kitchen.adaln(framed, a, b, EPS).flatten(1, 2)  # noqa: E731
    compare(run, "adaptive norm, comfy_kitchen", fused, right, 2)


def rms_norms(run: Run, x: Tensor) -> None:
    weight = (1 + 0.1 * torch.randn(x.shape[2], device=run.device)).to(x.dtype)
    right = rms_norm(x.double(), x.shape[-1:], weight.double(), EPS)
    fused = functools.partial(rms_norm, x, x.shape[-1:], weight, EPS)
    compare(run, "RMS norm, PyTorch's fused", fused, right, 2)

    def in_pieces() -> Tensor:
        out = torch.empty_like(x)
        count = layers.piece_count(x.nbytes)
        parts = zip(x.tensor_split(count, 1), out.tensor_split(count, 1), strict=True)
        for part, place in parts:
            place.copy_(rms_norm(part, x.shape[-1:], weight, EPS))
        return out

    compare(run, "RMS norm, in pieces", in_pieces, right, 2)


def rest(run: Run, x: Tensor, frames: int) -> None:
    y, gate = torch.randn_like(x), torch.randn(1, frames, x.shape[2], device=run.device)
    gated = (y.double().unflatten(1, (frames, -1)) * gate.double()[:, :, None]).flatten(1, 2)
    compare(
        run,
        "gated add, ours",
        lambda: layers.gated_add(x, y, gate, False),
        x.double() + gated,
        3,
    )
    right = torch.nn.functional.gelu(x.double(), approximate="tanh")
    compare(run, "GELU", lambda: torch.nn.functional.gelu(x, approximate="tanh"), right, 2)
