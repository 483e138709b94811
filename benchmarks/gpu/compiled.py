"""Our 1.3B with its blocks compiled: what the first forward takes, and the later ones."""

from __future__ import annotations

from torch import Tensor, nn

from . import comfyui, networks
from .run import Run
from .timing import Peak, error, gigabytes, seconds


def measure(run: Run) -> None:
    config = networks.config_of("1.3B", run.rehearse)
    state = networks.random_weights(config, run.dtype, run.device)
    given = networks.inputs(config, run.size, 1, run.dtype, run.device)
    plain = networks.ours(config, state, run.dtype)
    right = plain(*given)
    measure_way(run, "ours", plain, given, right)
    # A rehearsal looks at what the compiler is given, not at what it makes of it.
    backend = "eager" if run.rehearse else "inductor"
    run.attempt("ours, compiled", lambda: _compiled(run, plain, backend, given, right), 60)

    def in_comfyui() -> None:
        comfyui.boot_for(run.packed, run.rehearse)
        model = networks.in_comfyui(config, state, run.dtype)
        _compiled(run, model, backend, given, right, "ours, in ComfyUI, compiled")

    run.attempt("ours, in ComfyUI, compiled", in_comfyui, 30)


def _compiled(
    run: Run,
    model: nn.Module,
    backend: str,
    given: tuple[Tensor, Tensor, Tensor],
    right: Tensor,
    label: str = "ours, compiled",
) -> None:
    # To trace a block takes a processor several seconds.
    for part in [model.blocks[0].ffn] if run.rehearse else model.blocks:
        part.compile(backend=backend)
    measure_way(run, label, model, given, right)


def measure_way(
    run: Run,
    label: str,
    model: nn.Module,
    given: tuple[Tensor, Tensor, Tensor],
    right: Tensor,
) -> None:
    first, made = seconds(run.device, lambda: model(*given)), [right]

    def forward() -> None:
        made[0] = model(*given)

    with Peak(run.device) as peak:
        taken = seconds(run.device, forward, repeats=2)
    run.row(
        **{"way": label, "first s": first, "s a row": 2 * taken},
        **{"beyond weights": gigabytes(peak.beyond), "difference": error(made[0], right)},
    )
