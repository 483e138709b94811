"""The default policy: a line through the last two answers, as far as its measured error allows.

Where the model is asked again, its answer shows how far the forecast would have missed it. A line
that misses by m at a distance D in noise level, through points g apart, bends by m / (D (D + g)).
That is noted at the frame's noise level (`curves`), so that a frame that comes to a level after
others, in an asynchronous film, is expected to bend there as they did. What a forecast is expected
to miss counts by the step that it moves, for what is wrong moves a frame as far. In a row of
forecasts a frame's misses point the same way and add up. After each answer the calls to come are
looked at (`lookahead`), and those chosen to be made with which the expected errors and the calls
cost least together: a call costs what an error of the threshold does, in the mean square of these
sums over all frames. Frames that wait are shown to the model as they will be when they begin, so
that their first step, too, may be forecast.

When a frame finishes, the answers for its neighbours jump, and a line from before would lead away:
answers are held until two have been given since. How far they jump is noted as bends are. So calls
come where they lie best between two jumps, and no call has to be made for a frame's last step, once
it is known how the model's answers bend there.

What was tried beside it is in `benchmarks/RESULTS.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..solvers import per_frame
from .curves import Curves
from .lookahead import Answers, Course, count_forecasts
from .settings import CacheSettings
from .velocity import Call

RULE = 5  # of how many that there have been: films of another are no parts of this one's
# A line is followed less the farther it goes: by 1 / (1 + DAMPING * distance / gap).
DAMPING = 0.2
UNDECIDED = -1
GUIDANCE_CHANGE = 0.1  # of the guidance scale, after which an earlier answer is another model's
ALL_BUT_FRAMES = (0, 1, 3, 4)


@dataclass
class ForecastState:
    """What is known of a window: two tensors of its latents, and numbers on the CPU.

    velocity: the last answer (B, C, F, h, w). change: it less the one at the noise level before.
    levels, gaps (F,): its noise levels, and what they have risen since the one before (below 0).
    known (F,): how many levels are known of a frame, 0 to 2. begin: the first latent in view.
    slopes, bends, jumps: of `Curves`. left: calls to forecast before the next is made; UNDECIDED
    right after an answer. settled: answers since a frame finished, at most 2.
    """

    velocity: Tensor
    change: Tensor
    levels: Tensor
    gaps: Tensor
    known: Tensor
    begin: int
    guidance: float
    slopes: Tensor
    bends: Tensor
    jumps: Tensor
    left: int = UNDECIDED
    settled: int = 1

    @classmethod
    def first(cls, call: Call, velocity: Tensor, curves: Curves | None) -> ForecastState:
        """curves: what is known of the model already."""
        levels = call.levels.sigmas
        gaps, known = torch.zeros_like(levels), torch.ones(len(levels), dtype=torch.long)
        curves = Curves.unknown() if curves is None else curves
        return cls(
            velocity=velocity,
            change=torch.zeros_like(velocity),
            levels=levels,
            gaps=gaps,
            known=known,
            begin=call.begin,
            guidance=call.guidance,
            slopes=curves.slopes.clone(),
            bends=curves.bends.clone(),
            jumps=curves.jumps.clone(),
        )

    @property
    def curves(self) -> Curves:
        return Curves(self.slopes, self.bends, self.jumps)

    def lines(self, call: Call) -> Tensor:
        """Which frames are continued along a line; the others are held. (F,)"""
        return (self.known == 2) & (self.gaps != 0) & (self.settled == 2)

    def _finishes(self, call: Call) -> bool:
        """Whether a frame has finished since the last answer."""
        return bool(((call.levels.sigmas == 0) & (self.levels > 0)).any())

    def move(self, device: torch.device | str) -> None:
        self.velocity, self.change = self.velocity.to(device), self.change.to(device)

    def view(self, call: Call) -> None:
        """Forget latents that have left the view or were replaced, and make room for new ones."""
        count, leaving = len(call.levels.sigmas), call.begin - self.begin
        if leaving or count != len(self.levels):
            self.velocity, self.change = (
                _slide(tensor, leaving, count, dim=2) for tensor in (self.velocity, self.change)
            )
            self.levels, self.gaps, self.known = (
                _slide(tensor, leaving, count, dim=0)
                for tensor in (self.levels, self.gaps, self.known)
            )
            self.begin = call.begin
        self.known = torch.where(call.levels.fresh, 0, self.known)
        if self._finishes(call):
            self.settled = 0

    def weights(self, call: Call) -> Tensor:
        """How many gaps farther than the last answer each frame is, damped; 0: it is held. (F,)"""
        far = call.levels.sigmas - self.levels
        lines = self.lines(call)
        weights = torch.where(lines, far / torch.where(lines, self.gaps, 1.0), 0.0)
        return weights / (1 + DAMPING * weights.abs())

    def forecast(self, call: Call) -> Tensor:
        """(B, C, F, h, w) at the call's noise levels."""
        weights = self.weights(call).to(self.velocity)
        return self.velocity + per_frame(weights) * self.change


def _slide(tensor: Tensor, leaving: int, count: int, dim: int) -> Tensor:
    """`count` frames of a tensor from the `leaving`-th on, zeros where it has no more."""
    kept = tensor.narrow(dim, leaving, min(tensor.shape[dim] - leaving, count))
    shape = list(tensor.shape)
    shape[dim] = count - kept.shape[dim]
    return torch.cat([kept, tensor.new_zeros(shape)], dim=dim)


@dataclass(frozen=True)
class Forecast:
    """The default policy of the cache.

    Forecasts need nothing from the device; each answer's error is read from it once.
    """

    settings: CacheSettings = field(default_factory=CacheSettings)

    def forecast(self, state: ForecastState | None, call: Call) -> Tensor | None:
        if state is None or not self.settings.threshold:
            return None
        state.view(call)
        change = abs(call.guidance - state.guidance)
        if (
            bool((state.known[call.levels.moves] == 0).any())
            or change > GUIDANCE_CHANGE * max(abs(state.guidance), 1)
            or not self._decide(state, call)
        ):
            return None
        state.left -= 1
        return state.forecast(call)

    def _decide(self, state: ForecastState, call: Call) -> int:
        """How many calls, this one first, are forecast before one is made."""
        if state.left == UNDECIDED:
            settings, course = self.settings, Course.of(call)
            steps = (len(call.sigmas) - 1) * float(call.levels.moves.float().mean())
            always = [
                settings.always(row, call.rows, steps)
                for row in range(call.row, call.row + len(course.sigmas))
            ]
            answers = Answers(state.levels, state.gaps, state.settled)
            price = settings.threshold**2
            state.left = count_forecasts(course, answers, state.curves, always, price)
        return state.left

    def record(self, state: ForecastState | None, call: Call, velocity: Tensor) -> ForecastState:
        if state is None:
            return ForecastState.first(call, velocity, self.settings.curves)
        state.view(call)
        measure(state, call, velocity)
        levels = call.levels.sigmas
        moved = (levels != state.levels) & (state.known > 0)
        state.change = torch.where(
            per_frame(moved.to(velocity.device)), velocity - state.velocity, state.change
        )
        state.gaps = torch.where(moved, levels - state.levels, state.gaps)
        state.known = torch.where(moved, 2, state.known.clamp(min=1))
        state.velocity, state.levels, state.guidance = velocity, levels, call.guidance
        state.settled = min(state.settled + 1, 2)
        state.left = UNDECIDED
        return state


@dataclass(frozen=True)
class Calibrate:
    """A policy that makes all calls, and puts down in `curves` how the model's answers change.

    Over all windows of a film, of which each begins with what the ones before have shown.
    """

    curves: Curves

    def forecast(self, state: ForecastState | None, call: Call) -> Tensor | None:
        return None

    def record(self, state: ForecastState | None, call: Call, velocity: Tensor) -> ForecastState:
        settings = CacheSettings(0.0, curves=self.curves)
        state = Forecast(settings).record(state, call, velocity)
        self.curves.slopes.copy_(state.slopes)
        self.curves.bends.copy_(state.bends)
        self.curves.jumps.copy_(state.jumps)
        return state


def measure(state: ForecastState, call: Call, velocity: Tensor) -> None:
    """Note how far the frames that move have gone from the last answer and from its line.

    The one place that waits for the device.
    """
    levels = call.levels.sigmas
    moved = (levels != state.levels) & (state.known > 0) & call.levels.moves
    if not moved.any():
        return
    size = velocity.abs().mean(dim=ALL_BUT_FRAMES)
    size = size.clamp(min=torch.finfo(size.dtype).tiny)
    misses = [
        (velocity - guess).abs().mean(dim=ALL_BUT_FRAMES) / size
        for guess in (state.velocity, state.forecast(call))
    ]
    held, line = torch.stack(misses).cpu()  # (F,) each
    if state.settled:
        state.curves.note(levels, state.levels, state.gaps, (held, line), moved, state.lines(call))
    else:
        state.curves.note_jump(levels, state.levels, held, moved)
