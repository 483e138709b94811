"""A row of a film: its two forwards, by every implementation; seconds, and memory on the card.

The reference runs the prompts one after the other. Ours and ComfyUI's do so too, or together
(batch 2), where memory allows.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

from torch import nn

from skyreels_model.config import ModelConfig
from skyreels_model.model.memory import forward_bytes

from . import comfyui, networks
from .card import ceilings
from .run import Run
from .timing import Peak, gigabytes, seconds

Build = Callable[[], nn.Module]


def measure(run: Run) -> None:
    config = networks.config_of(run.section.name, run.rehearse)
    state = networks.random_weights(config, run.dtype, run.device)
    host = run.attempt(
        "ComfyUI",
        lambda: comfyui.boot_for(run.packed, run.rehearse) is not None,
    )
    ours = functools.partial(networks.ours, config, state, run.dtype)
    measure_way(run, config, "ours, plain", ours)
    if host:
        in_comfyui = functools.partial(networks.in_comfyui, config, state, run.dtype)
        measure_way(run, config, "ours, auto", in_comfyui)
        measure_way(run, config, "ComfyUI's own", lambda: networks.core(config, state, run.dtype))
    theirs = functools.partial(networks.reference, config, state, run.dtype, run.reference)
    measure_way(run, config, "reference", theirs)
    if host:
        measure_way(run, config, "ours, auto, batch 2", in_comfyui, batch=2)
        for name in networks.attentions():
            if name != "auto":
                measure_way(run, config, f"ours, {name}", functools.partial(in_comfyui, name))
    frames = -(-run.size[0] // 2)
    label = f"ours, plain, {run.size[0] - frames} of {run.size[0]} frames left out"
    measure_way(run, config, label, ours, size=(frames, *run.size[1:]))
    if importlib.util.find_spec("skyreels_model.cache") is None:
        run.row(way="ours, cached", note="no cache there yet")
    else:
        run.row(way="ours, cached", note="a skipped row runs no forward")


def measure_way(
    run: Run,
    config: ModelConfig,
    label: str,
    build: Build,
    batch: int = 1,
    size: tuple[int, int, int] | None = None,
) -> None:
    """A row of the table for one implementation: after a warm-up, the best of a few forwards."""
    size = size or run.size
    tokens = size[0] * size[1] * size[2] // 4
    work = sum(networks.operations(config, tokens).values())
    ceiling = ceilings(run.device)["product"]
    # At half of the ceiling, and once more for the warm-up and for making the model.
    expected = 3 * batch * work / ceiling
    figures = run.attempt(label, lambda: _forward(run, config, build, batch, size), expected)
    if figures is None:
        return
    taken, peak = figures
    rate = batch * work / taken
    estimate = forward_bytes(config, batch, *size, itemsize=run.dtype.itemsize)
    run.row(
        **{"way": label, "s a row": 2 * taken / batch, "TFLOP/s": rate / 1e12},
        **{"of ceiling": rate / ceiling, "beyond weights": gigabytes(peak.beyond)},
        estimate=estimate / peak.beyond if peak.beyond and label.startswith("ours") else None,
        reserved=gigabytes(peak.reserved),
    )


def _forward(
    run: Run, config: ModelConfig, build: Build, batch: int, size: tuple[int, int, int]
) -> tuple[float, Peak]:
    model = build()
    x, timesteps, text = networks.inputs(config, size, batch, run.dtype, run.device)
    with networks.one_block(model):
        model(x, timesteps, text)
    repeats = 2 if run.section.name == "1.3B" else 1
    with Peak(run.device) as peak:
        taken = seconds(run.device, lambda: model(x, timesteps, text), repeats)
    return taken, peak
