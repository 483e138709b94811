"""The card, and its two ceilings: bytes copied and operations of products in a second."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import time

import torch

from . import fused, networks
from .run import Run
from .timing import short_seconds

PRODUCT = 8192


@functools.cache
def ceilings(device: torch.device) -> dict[str, float]:
    """Of this process's device: bytes a second of a copy, operations a second of a bf16 product."""
    rehearse = device.type == "cpu"
    size = 2**20 if rehearse else min(2**32, torch.cuda.mem_get_info()[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = 2 * size / short_seconds(device, lambda: target.copy_(source))
    return {
        "copy": copied,
        "product": product(device, 128 if rehearse else PRODUCT, torch.bfloat16),
    }


def product(
    device: torch.device, size: int, dtype: torch.dtype, other: int = 0, third: int = 0
) -> float:
    """Operations a second of a product of random (size, other) and (other, third) numbers."""
    other, third = other or size, third or size
    a = torch.randn(size, other, device=device, dtype=dtype)
    b = torch.randn(third, other, device=device, dtype=dtype)
    taken = short_seconds(device, lambda: torch.nn.functional.linear(a, b))
    return 2.0 * size * other * third / taken


def measure(run: Run) -> None:
    describe(run)
    found = ceilings(run.device)
    run.row(what="copy, read and written", value=found["copy"] / 1e9, unit="GB/s")
    run.row(what="product, bf16, 8192 cubed", value=found["product"] / 1e12, unit="TFLOP/s")
    tokens = run.size[0] * run.size[1] * run.size[2] // 4
    shapes = {"14B, q": (5120, 5120), "14B, ffn": (5120, 13824), "1.3B, ffn": (1536, 8960)}
    for name, (n_in, n_out) in shapes.items():
        if run.rehearse:
            n_in, n_out = n_in // 64, n_out // 64
        rate = run.attempt(
            name, functools.partial(product, run.device, tokens, torch.bfloat16, n_in, n_out)
        )
        if rate:
            run.row(what=f"product, bf16, {name}", value=rate / 1e12, unit="TFLOP/s")
    size = 128 if run.rehearse else PRODUCT // 2
    run.row(
        what=f"product, float32, {size} cubed",
        value=product(run.device, size, torch.float32) / 1e12,
        unit="TFLOP/s",
    )
    run.attempt("our kernels, their test", functools.partial(try_kernels, run))


def try_kernels(run: Run) -> None:
    """Whether our kernels pass their test here, and in what time: mostly that of compiling them."""
    begin = time.perf_counter()
    found = fused.kernels_of(run, networks.config_of("14B", run.rehearse))
    said = fused.describe(found)
    run.row(what="our kernels, their test", value=time.perf_counter() - begin, unit="s", note=said)


def describe(run: Run) -> None:
    run.row(what="python", value=platform.python_version())
    for name in ("torch", "triton", "transformers", "comfy-kitchen", "comfy-aimdo"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            run.row(what=name, value=importlib.metadata.version(name))
    run.row(what="cuDNN", value=torch.backends.cudnn.version())
    if run.device.type != "cuda":
        run.row(what="card", value="none: a rehearsal on the processor")
        return
    card = torch.cuda.get_device_properties(0)
    run.row(what="card", value=card.name)
    run.row(what="compute capability", value=f"{card.major}.{card.minor}")
    run.row(what="memory", value=card.total_memory / 2**30, unit="GiB")
    run.row(what="multiprocessors", value=card.multi_processor_count)
