"""When which latent frame is at which noise level: the flow schedule and the timestep matrix.

Integers and float tables only; no model, no device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

LEAST_BEGIN = 0.9  # noise level at which noise alone still passes for the film's
TRAIN_TIMESTEPS = 1000
SIGMA_MAX = 0.999
MAX_STEPS = 1000  # no two steps of a longer schedule differ for the network


@dataclass(frozen=True)
class FlowSchedule:
    """Noise levels of one frame's way from noise to picture.

    sigmas: (N + 1,) float32, falling, the last is 0. timesteps: (N,) int64, what the network sees:
    sigma * 1000 truncated, while the solver uses the exact sigma.
    """

    sigmas: Tensor
    timesteps: Tensor

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def row_levels(self, index: Tensor, update: Tensor, fresh: Tensor) -> RowLevels:
        """The noise levels of a model call in which frames are in these steps, all (F,).

        index: 0 = not yet started, k = in its k-th step, N + 1 = done, as in the timestep matrix.
        """
        table = torch.cat([self.sigmas[:1], self.sigmas])  # (N + 2,)
        sigmas = table[index]
        after = table[(index + 1).clamp(max=self.steps + 1)]
        return RowLevels(sigmas, torch.where(update, after, sigmas), update, fresh)


@dataclass(frozen=True)
class RowLevels:
    """The noise levels of one model call, known before it without any device; all (F,).

    sigmas, after: of each latent frame that the model is shown, and once its solver has moved it.
    moves: whether it does. fresh: whether the frame was replaced by noise just before.
    """

    sigmas: Tensor
    after: Tensor
    moves: Tensor
    fresh: Tensor

    @property
    def highest(self) -> float:
        """The largest noise level that is moved."""
        return float(self.sigmas[self.moves].max())


def flow_schedule(steps: int, shift: float) -> FlowSchedule:
    """Shifted flow-matching schedule of the reference.

    sigma = shift*u / (1 + (shift - 1)*u) for u evenly from 0.999 to 0, the 0 itself appended.
    Computed in float64. Source: SkyworkAI/SkyReels-V2, `scheduler/fm_solvers_unipc.py`, built
    with shift 1 and given `shift` in `set_timesteps`. Raises ValueError on steps < 1, shift <= 0.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if not 0 < shift < math.inf:
        raise ValueError(
            f"shift is {shift}; it must be above 0 (authors' values: 8 for text, 3 to 5 with a "
            f"start image)"
        )
    sigma_max = float(torch.tensor(SIGMA_MAX, dtype=torch.float32))
    u = sigma_max + torch.arange(steps, dtype=torch.float64) * (-sigma_max / steps)
    sigmas = shift * u / (1 + (shift - 1) * u)
    timesteps = (sigmas * TRAIN_TIMESTEPS).long()
    return FlowSchedule(torch.cat([sigmas, sigmas.new_zeros(1)]).float(), timesteps)


def custom_schedule(sigmas: Sequence[float] | Tensor) -> FlowSchedule:
    """The schedule of given noise levels (N + 1,): falling from 1, or a little below, to 0.

    Raises ValueError on others.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float32).flatten()
    if not 2 <= len(levels) <= MAX_STEPS + 1:
        raise ValueError(
            f"sigmas has {len(levels)} noise levels; it must have at least 2, such as 1, 0, and at "
            f"most {MAX_STEPS + 1}"
        )
    first, last = float(levels[0]), float(levels[-1])
    if not LEAST_BEGIN <= first <= 1:
        raise ValueError(
            f"sigmas begins at {first:g}; films begin as noise, at levels of {LEAST_BEGIN:g} to "
            f"1; nearest: {1 if first > 1 else LEAST_BEGIN:g} (for a part of the way use denoise, "
            f"with a source film)"
        )
    if last != 0:
        raise ValueError(f"sigmas ends at {last:g}; it must end at 0: append a 0")
    for place, (before, level) in enumerate(pairwise(levels.tolist()), start=1):
        if not level < before:
            raise ValueError(
                f"sigmas has {level:g} at place {place + 1}, after {before:g}; each noise level "
                f"must be below the one before: leave it out"
            )
    # The product is rounded to float32, which keeps a 0.9 at 900.
    return FlowSchedule(levels, (levels[:-1] * TRAIN_TIMESTEPS).long())


def partial_schedule(steps: int, shift: float, denoise: float) -> FlowSchedule:
    """The last `steps` steps of a schedule that would take `steps / denoise` from pure noise."""
    whole = flow_schedule(max(round(steps / denoise), steps), shift)
    return FlowSchedule(whole.sigmas[-steps - 1 :], whole.timesteps[-steps:])
