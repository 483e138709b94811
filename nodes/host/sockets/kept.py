"""Frames that rest in the host: how a film's model calls leave them out, and what that takes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....skyreels_model.cache.kept_frames import FrameKeeper, Keeping

# In the host's transformer options: how a film keeps frames, and what it keeps of a window.
KEEPING, KEEPER = "skyreels_v2_keeping", "skyreels_v2_keeper"


@dataclass(frozen=True)
class HostKeeping:
    """How a film keeps frames, and the most that it keeps at once for a prompt."""

    keeping: Keeping
    most: int


def keep_frames(
    options: Mapping[str, Any],
) -> Callable[[Callable[..., Tensor], Tensor, Tensor], Tensor] | None:
    """What makes a forward of the frames at work alone; None for one of all frames.

    That is one by any other sampler, and one in which a node replaces blocks or asks for no prompt
    by name: it is computed whole. Raises ValueError where a model of blocks cannot be.
    """
    keeper: FrameKeeper | None = options.get(KEEPER)
    if keeper is None:
        return None
    if options.get("patches_replace", {}).get("dit") or not options.get("uuids"):
        if keeper.keeping.block:
            raise ValueError(
                "a node replaces blocks of the model while it runs (skip layer guidance?), and the "
                "model's variant is causal, whose frames are seen through what is kept of them: "
                "connect the model without that node"
            )
        return None
    prompts: tuple[Hashable, ...] = tuple(options["uuids"])

    def forward(call: Callable[..., Tensor], x: Tensor, t: Tensor, **how: Any) -> Tensor:
        return keeper.forward(prompts, call, x, t, **how)

    return forward


def count_kept(options: Mapping[str, Any], prompts: int) -> tuple[int, HostKeeping] | None:
    """How many frames a film keeps for so many prompts, and how; None where it keeps none."""
    found: HostKeeping | None = options.get(KEEPING)
    return (found.most * prompts, found) if found else None


def count_prompts(batch: int, conds: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """For how many samples of a run something is kept: each of each prompt.

    Several names may stand for a prompt.
    """
    prompts = {
        (id(cond.get("cross_attn")), id(cond.get("hooks")), str(cond.get("area")))
        for named in conds.values()
        for cond in named
    }
    return batch * len(prompts)
