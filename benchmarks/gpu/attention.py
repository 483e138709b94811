"""Every way to attend that is here, over the tokens of 540P x 97: speed, and error on a sample."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from skyreels_model.attention import sdpa

from . import comfyui
from .card import ceilings
from .run import Run
from .timing import error, short_seconds

HEADS = {"1.3B": 12, "14B": 40}
HEAD_DIM = 128
SAMPLE = 64  # queries whose right answer is computed in float32
# They hold scores, or go through the tokens in pieces: minutes at this length.
SLOW = ("sub_quad", "split", "basic")
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def with_kernel(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    with sdpa_kernel([backend]):
        return sdpa(q, k, v, heads)


def ways(run: Run) -> dict[str, Attend]:
    """All that can attend here, by name: PyTorch's kernels, the host's functions, our loader's."""
    found: dict[str, Attend] = {"PyTorch, its own order": sdpa}
    for name, backend in KERNELS.items():
        found[f"PyTorch, {name}"] = functools.partial(with_kernel, backend)
    run.attempt("ComfyUI", lambda: comfyui.boot_for(run.packed, run.rehearse))
    for name, function in _registered().items():
        if name not in SLOW:
            found[f"ComfyUI, {name}"] = functools.partial(_host_call, function)
    for name, function in _offered().items():
        found[f"our loader, {name}"] = functools.partial(_host_call, function)
    return found


def _host_call(function: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return function(q, k, v, heads=heads)


def _registered() -> dict[str, Any]:
    try:
        import comfy.ldm.modules.attention as attention
    except ImportError:
        return {}
    return dict(attention.REGISTERED_ATTENTION_FUNCTIONS)


def _offered() -> dict[str, Any]:
    try:
        usable = comfyui.ours("nodes.host.sockets.attention").usable
        return dict(usable(torch.bfloat16, HEAD_DIM))
    except (ImportError, StopIteration):
        return {}


def measure(run: Run) -> None:
    tokens = run.size[0] * run.size[1] * run.size[2] // 4
    found = ways(run)
    ceiling = ceilings(run.device)["product"]
    for name, heads in HEADS.items():
        heads = 2 if run.rehearse else heads
        generator = torch.Generator(run.device).manual_seed(0)
        q, k, v = (
            torch.randn(
                1,
                tokens,
                heads * HEAD_DIM,
                device=run.device,
                dtype=torch.bfloat16,
                generator=generator,
            )
            for _ in range(3)
        )
        right = in_float32(q[:, :SAMPLE], k, v, heads)
        for way, attend in found.items():
            call = functools.partial(attend, q, k, v, heads)
            taken = run.attempt(f"{way} ({name})", functools.partial(_time, run, call), 2)
            if taken is None:
                continue
            rate = 4.0 * tokens * tokens * heads * HEAD_DIM / taken
            run.row(
                **{"back end": way, "heads": heads, "ms": 1000 * taken, "TFLOP/s": rate / 1e12},
                **{"of ceiling": rate / ceiling, "error": error(call()[:, :SAMPLE], right)},
            )


def _time(run: Run, call: Callable[[], Tensor]) -> float:
    return short_seconds(run.device, call, calls=3)


def in_float32(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention of a few queries, head by head, in float32: (1, SAMPLE, heads * d)."""
    parts = []
    for part in range(heads):
        one = slice(part * HEAD_DIM, (part + 1) * HEAD_DIM)
        a, b, c = (t[0, :, one].double() for t in (q, k, v))
        parts.append(torch.softmax(a @ b.T * HEAD_DIM**-0.5, dim=1) @ c)
    return torch.cat(parts, dim=1)[None]
