"""How many model calls are forecast before the next is made, by what that would miss.

Frames take their steps as the schedule has them, so the levels of the coming calls are known. Each
way to choose those that are made has a price: what the forecasts between two of them are expected
to miss, and a fixed one for each that is made. The cheapest way tells when the next one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .curves import Curves
from .velocity import Call

HORIZON = 13  # calls that are looked at
LONGEST = 8  # calls from one that is made to the next
USUAL_STEP = 1 / 18  # of noise level: a step of this length counts as it is


@dataclass(frozen=True)
class Course:
    """The frames of this call and of those after it; R calls, the window's last at most.

    sigmas (R, F): their noise levels. steps (R, F): how far they are moved, 0 where they are not.
    last (R, F): whether it is a frame's last step. phases (R,): in how many calls before it, from
    this one on, a frame has finished.
    """

    sigmas: Tensor
    steps: Tensor
    last: Tensor
    phases: Tensor

    @classmethod
    def of(cls, call: Call) -> Course:
        """By the schedule. Frames that wait are taken to wait on: their first steps are easy."""
        levels, ends = call.levels, len(call.sigmas) - 1
        place = (call.sigmas[:, None] - levels.sigmas).abs().argmin(dim=0)  # (F,)
        count = min(HORIZON, call.rows - call.row)
        ahead = torch.where(levels.moves, torch.arange(count)[:, None], 0)
        places = (place + ahead).clamp(max=ends)  # (R, F)
        moves = levels.moves & (places < ends)
        sigmas = torch.where(levels.moves, call.sigmas[places], levels.sigmas)
        after = call.sigmas[(places + 1).clamp(max=ends)]
        last = moves & (places == ends - 1)
        finishes = last.any(dim=1).long()
        phases = finishes.cumsum(0) - finishes
        return cls(sigmas, torch.where(moves, sigmas - after, 0.0), last, phases)


@dataclass(frozen=True)
class Answers:
    """The last answer, at these levels, and how far they were from the one before; (F,) each.

    settled: how many answers there are since a frame finished, at most 2.
    """

    levels: Tensor
    gaps: Tensor
    settled: int


def count_forecasts(
    course: Course, answers: Answers, curves: Curves, always: Sequence[bool], price: float
) -> int:
    """How many calls, this one first, are to be forecast before one is made.

    always: which calls are made in any case. price: what a call costs that is made, in the mean
    square over frames of what forecasts in a row miss in total.
    """
    misses = _expect(course, answers, curves)
    misses = torch.where(course.steps > 0, misses * (course.steps / USUAL_STEP), 0.0)
    answered = torch.arange(len(misses))[:, None] - 2  # the call that gave it; 0 is this one
    misses = torch.where((torch.arange(len(always)) > answered)[..., None], misses, 0.0)
    costs = misses.cumsum(dim=2).square().mean(dim=3)  # (A, A, R)
    unknown = (course.last & ~curves.knows_bends(course.sigmas)).any(dim=1)
    made = [one or other for one, other in zip(always, unknown.tolist(), strict=True)]
    return _choose(costs.tolist(), made, price)


def _expect(course: Course, answers: Answers, curves: Curves) -> Tensor:
    """How far forecasts miss, as a share of the velocity, by the two answers they are made from.

    (A, A, R, F): the answer before the last, the last, the call. Answers are the two that there
    are, then those of the calls, if they are made. Where a frame has finished between the first and
    the last of these three, the last answer is held; elsewhere a line is followed.
    """
    levels = torch.cat([(answers.levels - answers.gaps)[None], answers.levels[None], course.sigmas])
    phases = course.phases + int(answers.settled == 0)  # (R,)
    before = torch.tensor([0 if answers.settled == 2 else -1, 0])
    answered = torch.cat([before, phases])  # (A,)
    slopes, bends, jumps = curves.at(course.sigmas)  # (R, F) each
    far = (course.sigmas - levels[:, None]).abs()  # (A, R, F)
    held = torch.where(far > 0, slopes * far, 0.0)
    held += torch.where((phases > answered[:, None])[..., None], jumps, 0.0)
    gaps = (levels - levels[:, None]).abs()[:, :, None]  # (A, A, 1, F)
    line = torch.where(far > 0, bends * far * (far + gaps), 0.0)  # (A, A, R, F)
    settled = (answered[:, None] == answered)[..., None] & (answered[:, None] == phases)
    return torch.where(settled[..., None] & (gaps > 0), line, held)


def _choose(costs: Sequence, always: Sequence[bool], price: float) -> int:
    """The number of forecasts at the start of the cheapest way through the calls.

    costs[p][a][r]: of forecasting by the answers p and a from the call after a up to r.
    """
    rows = len(always)
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for last in reversed(range(1, rows + 2)):
        first = last - 1  # the call after it
        for before in range(last):
            ways: list[tuple[float, int]] = []
            for made in range(first, min(first + LONGEST - 1, rows) + 1):
                missed = costs[before][last][made - 1] if made > first else 0.0
                later = best[last, made + 2][0] if made < rows else 0.0
                ways.append((missed + price + later, first - made))
                if made < rows and always[made]:
                    break
            best[before, last] = min(ways)  # of equal ones the latest
    return -best[0, 1][1]
