"""A row of a film: its two forwards, by every implementation; seconds, and memory on the card.

The reference runs the prompts one after the other. Ours and ComfyUI's do so too, or together
(batch 2), where memory allows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from skyreels_model.cache.keys_values import KeptFrame, KeysValues, RowForward, RowFrames
from skyreels_model.config import ModelConfig
from skyreels_model.kernels import FusedBlocks, Kernels
from skyreels_model.model.layers import BlockInputs
from skyreels_model.model.memory import Execution, forward_bytes

from . import comfyui, networks
from .attention import SLOW
from .card import ceilings
from .fused import kernels_of
from .run import Run
from .timing import Peak, gigabytes, seconds

Build = Callable[[], Any]


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
    by_kernels = lambda: ByKernels(ours(), kernels_of(run, config))  # noqa: E731
    measure_way(run, config, "ours, plain, by kernels", by_kernels)
    frames = -(-run.size[0] // 2)
    rest = f"{run.size[0] - frames} of {run.size[0]} frames"
    measure_way(run, config, f"ours, plain, {rest} left out", ours, size=(frames, *run.size[1:]))
    keeping = lambda: KeptFrames(ours(), run.size[0] - frames)  # noqa: E731
    measure_way(run, config, f"ours, plain, {rest} kept", keeping, computed=frames)
    skipped = "ours, plain, blocks left out by the published TeaCache"
    measure_way(run, config, skipped, lambda: BlocksLeftOut(ours()), computed=0)
    run.row(way="ours, cached", note="a forecast row runs no forward")
    # The last, since one that is slow may take all that is left.
    for name in networks.attentions() if host else ():
        if name not in ("auto", *SLOW):
            measure_way(run, config, f"ours, {name}", functools.partial(in_comfyui, name))


def measure_way(
    run: Run,
    config: ModelConfig,
    label: str,
    build: Build,
    batch: int = 1,
    size: tuple[int, int, int] | None = None,
    computed: int | None = None,
) -> None:
    """A row of the table for one implementation: after a warm-up, the best of a few forwards.

    computed: how many frames of `size` are, where it is not all; then nothing is estimated.
    """
    size = size or run.size
    frame = size[1] * size[2] // 4
    tokens = (size[0] if computed is None else computed) * frame
    work = sum(networks.operations(config, tokens, seen=size[0] * frame).values())
    ceiling = ceilings(run.device)["product"]
    # At half of the ceiling, and once more for the warm-up and for making the model.
    expected = 3 * batch * work / ceiling
    figures = run.attempt(label, lambda: _forward(run, config, build, batch, size), expected)
    if figures is None:
        return
    taken, peak, execution = figures
    rate = batch * work / taken
    estimate = forward_bytes(config, batch, *size, run.dtype.itemsize, execution=execution)
    comparable = peak.beyond and computed is None and label.startswith("ours")
    run.row(
        **{"way": label, "s a row": 2 * taken / batch, "TFLOP/s": rate / 1e12},
        **{"of ceiling": rate / ceiling, "beyond weights": gigabytes(peak.beyond)},
        estimate=estimate / peak.beyond if comparable and peak.beyond else None,
        reserved=gigabytes(peak.reserved),
    )


def _forward(
    run: Run, config: ModelConfig, build: Build, batch: int, size: tuple[int, int, int]
) -> tuple[float, Peak, Execution]:
    model = build()
    x, timesteps, text = networks.inputs(config, size, batch, run.dtype, run.device)
    with networks.one_block(model):
        model(x, timesteps, text)
    repeats = 2 if run.section.name == "1.3B" else 1
    with Peak(run.device) as peak:
        taken = seconds(run.device, lambda: model(x, timesteps, text), repeats)
    return taken, peak, networks.execution_of(model)


class _Wrapped:
    """A transformer that is run another way, with its blocks in their place."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def blocks(self) -> Any:
        return self.model.blocks

    @blocks.setter
    def blocks(self, blocks: Any) -> None:
        self.model.blocks = blocks


class ByKernels(_Wrapped):
    """Its blocks run by our kernels."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        super().__init__(model)
        self.run_block = FusedBlocks(kernels)

    def __call__(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        out: Tensor = self.model(x, timestep, text, run_block=self.run_block)
        return out


class KeptFrames(_Wrapped):
    """Its first `kept` frames are seen by kept keys and values, and not computed.

    They are made in the first forward, the warm-up with one block, and stand for all blocks'.
    """

    def __init__(self, model: Any, kept: int) -> None:
        super().__init__(model)
        self.kept, self.store = kept, KeysValues()

    def __call__(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        begin = self.kept if self.store.frames else 0
        row = RowFrames(tuple(range(begin, x.shape[2])), tuple(range(self.kept)))
        call = functools.partial(self.model, context=text)
        out = RowForward([self.store], row).run(call, x, timestep)
        if not begin:
            count = self.model.config.num_layers
            self.store.frames = {
                place: KeptFrame(frame.origin, frame.layers[:1] * count)
                for place, frame in self.store.frames.items()
            }
        return out


class BlocksLeftOut(_Wrapped):
    """Its blocks add what is kept of an earlier forward: the first, the warm-up, runs them."""

    residual: Tensor | None = None

    def __call__(self, x: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        out: Tensor = self.model(x, timestep, text, cache=self)
        return out

    def recall(self, x: Tensor, _inputs: BlockInputs) -> Tensor | None:
        return None if self.residual is None else x.add_(self.residual)

    def remember(self, x: Tensor) -> None:
        self.residual = torch.zeros_like(x)
