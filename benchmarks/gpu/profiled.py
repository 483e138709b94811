"""Where a forward of 14B spends its time: kernel by kernel, and by what they do."""

from __future__ import annotations

import re
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from . import comfyui, networks
from .card import ceilings
from .run import Run

TOP = 15
# What a kernel does, by its name; the first that is found in it.
KINDS = {
    "attention": r"flash|fmha|attention|sdpa|cudnn_generated|sage",
    "products": r"gemm|cutlass|nvjet|xmma|cublas|matmul|mm|linear|convolution",
    "norms": r"norm",
    "copies": r"copy|memcpy|cat|memset|fill",
    "reductions": r"reduce|softmax|sum|mean",
    "elementwise": r"elementwise|triton|gelu|mul|add|rope|adaln|polar",
}


def kind_of(name: str) -> str:
    found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower()))
    return next(found, "other")


def measure(run: Run) -> None:
    comfyui.boot_for(run.packed, run.rehearse)
    config = networks.config_of("14B", run.rehearse)
    state = networks.random_weights(config, run.dtype, run.device)
    model = networks.in_comfyui(config, state, run.dtype)
    x, timesteps, text = networks.inputs(config, run.size, 1, run.dtype, run.device)
    with networks.one_block(model):
        model(x, timesteps, text)
    on_card = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_card
    with profile(activities=activities) as recorded:
        model(x, timesteps, text)
    kernels = read(recorded, on_card)
    total = sum(time for _, _, time in kernels) or 1.0
    done = networks.operations(config, run.size[0] * run.size[1] * run.size[2] // 4)
    ceiling = ceilings(run.device)["product"]
    for kind in (*KINDS, "other"):
        of_kind = [(calls, time) for name, calls, time in kernels if kind_of(name) == kind]
        taken = sum(time for _, time in of_kind)
        rate = done[kind] / taken if kind in done and taken else None
        run.row(
            **{"what": f"all {kind}", "calls": sum(calls for calls, _ in of_kind)},
            **{"ms": 1000 * taken, "share": taken / total},
            **{"TFLOP/s": rate and rate / 1e12, "of ceiling": rate and rate / ceiling},
        )
    run.row(what="all kernels", calls=sum(n for _, n, _ in kernels), ms=1000 * total, share=1.0)
    for name, calls, time in sorted(kernels, key=lambda one: -one[2])[:TOP]:
        run.row(what=name[:90], calls=calls, ms=1000 * time, share=time / total, kind=kind_of(name))


def read(recorded: Any, on_card: bool) -> list[tuple[str, int, float]]:
    """Name, calls and seconds of each kernel on the card, or of each operator on a processor."""
    events = recorded.key_averages()
    if not on_card:
        return [(e.key, e.count, e.self_cpu_time_total / 1e6) for e in events]
    on_device = [e for e in events if e.device_type == DeviceType.CUDA]
    return [(e.key, e.count, e.self_device_time_total / 1e6) for e in on_device]
