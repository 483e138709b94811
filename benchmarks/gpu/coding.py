"""The VAE at 540P: ours, ComfyUI's and the reference's, decoding and encoding."""

from __future__ import annotations

import contextlib
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import torch
import vae as vae_benchmark
from torch import Tensor, nn

from skyreels_model.vae import VideoVAE

from . import comfyui
from .run import Run
from .timing import Peak, error, gigabytes, seconds

LATENTS, DIM = 9, 96
Code = Callable[[Tensor], Tensor]
Build = Callable[[str], Code]


def measure(run: Run) -> None:
    torch.manual_seed(0)
    dim = 8 if run.rehearse else DIM
    model = VideoVAE(dim, device=run.device, dtype=torch.float32).requires_grad_(False)
    frames, height, width = (2, 2, 2) if run.rehearse else (LATENTS, *run.size[1:])
    shapes = {
        "decode": (1, 16, frames, height, width),
        "encode": (1, 3, 4 * frames - 3, 8 * height, 8 * width),
    }
    state = model.state_dict()
    ways: dict[str, Build] = {
        "ours": functools.partial(_ours, _low(state, run)),
        "ours, channels last": functools.partial(_channels_last, _low(state, run)),
        "ComfyUI's own": functools.partial(_core, run, dim, state),
        "reference, bf16 autocast": functools.partial(_reference, run, dim, state),
    }
    for kind, shape in shapes.items():
        x = torch.rand(shape, device=run.device) * 2 - 1
        right: Tensor | None = None
        for way, build in ways.items():
            label = f"{kind}, {way}"
            figures = run.attempt(label, functools.partial(_time, run, build, kind, x), 10)
            if figures is None:
                continue
            taken, peak, out = figures
            right = out if right is None else right
            run.row(
                **{"way": label, "seconds": taken, "frames/s": (4 * frames - 3) / taken},
                **{"beyond weights": gigabytes(peak.beyond), "difference": error(out, right)},
            )


def _time(run: Run, build: Build, kind: str, x: Tensor) -> tuple[float, Peak, Tensor]:
    code, made = build(kind), []
    if not run.rehearse:
        code(x[:, :, : 5 if kind == "encode" else 2])
    with Peak(run.device) as peak:
        taken = seconds(run.device, lambda: made.append(code(x)))
    return taken, peak, made[0].float()


def _low(state: dict[str, Tensor], run: Run) -> dict[str, Tensor]:
    return {key: value.to(run.dtype) for key, value in state.items()}


def _load(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _ours(state: dict[str, Tensor], kind: str) -> Code:
    dtype = next(iter(state.values())).dtype
    dim = len(state["encoder.conv1.bias"])
    model: Any = _load(VideoVAE(dim, device="meta", dtype=dtype), state)
    code = vae_benchmark.stream_decode(model) if kind == "decode" else model.encode
    return lambda x: code(x.to(dtype))


def _channels_last(state: dict[str, Tensor], kind: str) -> Code:
    form = torch.channels_last_3d
    last = {k: v.contiguous(memory_format=form) if v.ndim == 5 else v for k, v in state.items()}
    code = _ours(last, kind)
    return lambda x: code(x.contiguous(memory_format=form))


def _core(run: Run, dim: int, state: dict[str, Tensor], kind: str) -> Code:
    comfyui.boot_for(run.packed, run.rehearse)
    import comfy.ldm.wan.vae

    with torch.device("meta"):
        model: Any = comfy.ldm.wan.vae.WanVAE(
            dim=dim, z_dim=16, dim_mult=[1, 2, 4, 4], temperal_downsample=[False, True, True]
        )
    _load(model, _low(state, run))
    return lambda x: getattr(model, kind)(x.to(run.dtype))


def _reference(run: Run, dim: int, state: dict[str, Tensor], kind: str) -> Code:
    if run.reference is None:
        raise ValueError("no source tree of the reference was packed")
    path = pathlib.Path(run.reference) / "skyreels_v2_infer" / "modules" / "vae.py"
    with torch.device("meta"):
        model: Any = vae_benchmark.load_reference(str(path), dim)
    _load(model, state)
    on_card = run.device.type == "cuda"

    def code(x: Tensor) -> Tensor:
        low = torch.autocast("cuda", torch.bfloat16) if on_card else contextlib.nullcontext()
        with low:
            return getattr(model, kind)(x, [0.0, 1.0])

    return code
