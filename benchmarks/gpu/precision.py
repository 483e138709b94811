"""How far a bf16 forward is from the same forward in float32, alone and guided."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import comfyui, networks
from .run import Run
from .timing import error

GUIDANCE = 6.0
SIZES = ((2, 24, 24), (5, 34, 60))  # 288 and 2550 tokens
Build = Callable[[], nn.Module]


def velocities(model: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The velocity for the first text, and guided away from the second, in float64."""
    x, t, text = given
    positive, negative = (model(x[:1], t[:1], one[None]).double() for one in text)
    return positive, negative + GUIDANCE * (positive - negative)


def measure(run: Run) -> None:
    comfyui.boot_for(run.packed, run.rehearse)
    config, low = networks.config_of("1.3B", run.rehearse), torch.bfloat16
    state = networks.random_weights(config, low, run.device)
    exact = {key: value.float() for key, value in state.items()}
    # On a processor the reference's time embedding asserts what CUDA's autocast does.
    theirs, weights = (torch.float32, exact) if run.rehearse else (low, state)
    ways: dict[str, Build] = {
        "reference": lambda: networks.reference(config, weights, theirs, run.reference),
        "ours": lambda: networks.ours(config, state, low),
        "ours, in ComfyUI": lambda: networks.in_comfyui(config, state, low),
        "ComfyUI's own": lambda: networks.core(config, state, low),
    }
    # A convolution in float32 would be rounded to 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    plain = networks.ours(config, exact, torch.float32)
    for size in SIZES[:1] if run.rehearse else SIZES:
        size = (2, 8, 8) if run.rehearse else size
        given = networks.inputs(config, size, 2, low, run.device)
        # ComfyUI's own has no fps embedding: it is compared with a model without it.
        right = velocities(plain, _cast(given, torch.float32))
        without = velocities(_without_fps(config, exact), _cast(given, torch.float32))
        found: dict[str, tuple[float, float]] = {}
        for way, build in ways.items():
            dtype = theirs if way == "reference" else low
            truth = without if way == "ComfyUI's own" else right
            one = functools.partial(_errors, build, _cast(given, dtype), truth)
            errors = run.attempt(way, one, 2)
            if errors is None:
                continue
            found[way] = errors
            ratio = errors[0] / found["reference"][0] if "reference" in found else None
            tokens = size[0] * size[1] * size[2] // 4
            run.row(
                **{"way": way, "tokens": tokens, "error": errors[0]},
                **{"guided at 6": errors[1], "to the reference": ratio},
            )


def _cast(given: tuple[Tensor, ...], dtype: torch.dtype) -> Any:
    x, t, text = given
    return x.to(dtype), t, text.to(dtype)


def _without_fps(config: Any, state: networks.State) -> nn.Module:
    import dataclasses

    kept = {key: value for key, value in state.items() if not key.startswith("fps_")}
    return networks.ours(dataclasses.replace(config, fps_embedding=False), kept, torch.float32)


def _errors(
    build: Build, given: tuple[Tensor, Tensor, Tensor], right: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    alone, guided = velocities(build(), given)
    return error(alone, right[0]), error(guided, right[1])
