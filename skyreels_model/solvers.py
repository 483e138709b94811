"""ODE solvers in which every latent frame is at its own step.

A solver is a table of coefficients per step, computed once in float64. One call moves any subset
of the frames: each frame gathers its step's coefficients, so there is no loop over frames, no
lookup by timestep and no transfer from the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Device = torch.device | str


@dataclass
class SolverState:
    """What a solver remembers of a window: tensors of the sample's shape, by name."""

    history: dict[str, Tensor]


class Solver(Protocol):
    """`stochastic`: every step takes noise, too."""

    stochastic: bool

    def start(self, x: Tensor) -> SolverState:
        """Fresh state for a window of x's shape."""
        ...

    def step(
        self,
        state: SolverState,
        x: Tensor,
        velocity: Tensor,
        step: Tensor,
        update: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Move the frames of `update` from their sigma to the next; the others stay.

        x, velocity: (B, C, F, H, W). step: (F,) int64 in 0..N-1, on x's device. update: (F,) bool.
        noise: standard normal of x's shape, for a stochastic solver.
        """
        ...


def per_frame(values: Tensor) -> Tensor:
    """(F,) -> (1, 1, F, 1, 1)"""
    return values[None, None, :, None, None]


class Euler:
    """First order: x + (sigma_next - sigma) * v."""

    stochastic = False

    def __init__(self, sigmas: Tensor, device: Device = "cpu") -> None:
        """sigmas: (N + 1,), falling to 0, on the CPU; the tables go to `device`, the samples'."""
        sigmas = sigmas.double()
        self.delta = (sigmas[1:] - sigmas[:-1]).float().to(device)  # (N,)

    def start(self, x: Tensor) -> SolverState:
        return SolverState({})

    def step(
        self,
        state: SolverState,
        x: Tensor,
        velocity: Tensor,
        step: Tensor,
        update: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        return torch.where(per_frame(update), x + velocity * per_frame(self.delta[step]), x)


class UniPC:
    """UniPC of order 2 (bh2, x0-prediction), the corrector from the second step on.

    Source: Zhao et al. 2023, "UniPC"; as configured by SkyworkAI/SkyReels-V2
    (`scheduler/fm_solvers_unipc.py`): order 1 in the first and the last step. Both formulas are
    linear in the samples and the x0 estimates, so a step is a weighted sum of tensors.

    `as_shipped` repeats a defect of the reference's diffusion-forcing loop: it writes a step's
    result into the memory of the sample that the solver still remembers, so that the first
    correction starts from the wrong sample and the method falls to first order. Only for
    comparisons with it.
    """

    stochastic = False

    def __init__(self, sigmas: Tensor, device: Device = "cpu", as_shipped: bool = False) -> None:
        """sigmas: (N + 1,), falling to 0, on the CPU; the tables go to `device`, the samples'."""
        self.as_shipped = as_shipped
        values, steps = [float(s) for s in sigmas], range(len(sigmas) - 1)
        self.sigmas = sigmas[:-1].float().to(device)  # (N,)
        # Columns: weights of (sample, m[k], m[k-1]).
        self.predictor = torch.tensor([_predictor(values, k) for k in steps], device=device)
        # Columns: weights of (corrected sample before, m[k], m[k-1], m[k-2]).
        self.corrector = torch.tensor([_corrector(values, k) for k in steps], device=device)

    def start(self, x: Tensor) -> SolverState:
        return SolverState({name: torch.zeros_like(x) for name in ("m1", "m2", "last")})

    def step(
        self,
        state: SolverState,
        x: Tensor,
        velocity: Tensor,
        step: Tensor,
        update: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        moved, history = per_frame(update), state.history
        m0 = x - velocity * per_frame(self.sigmas[step])
        c = self.corrector[step]  # (F, 4)
        corrected = (
            per_frame(c[:, 0]) * history["last"]
            + per_frame(c[:, 1]) * m0
            + per_frame(c[:, 2]) * history["m1"]
            + per_frame(c[:, 3]) * history["m2"]
        )
        corrected = torch.where(per_frame(step > 0), corrected, x)
        p = self.predictor[step]  # (F, 3)
        predicted = (
            per_frame(p[:, 0]) * corrected
            + per_frame(p[:, 1]) * m0
            + per_frame(p[:, 2]) * history["m1"]
        )
        if self.as_shipped:
            corrected = torch.where(per_frame(step == 0), predicted, corrected)
        history["m2"] = torch.where(moved, history["m1"], history["m2"])
        history["m1"] = torch.where(moved, m0, history["m1"])
        history["last"] = torch.where(moved, corrected, history["last"])
        return torch.where(moved, predicted, x)


class DPMSolver2M:
    """DPM-Solver++ (2M): order 2 from two x0 estimates, in the half log-SNR; no corrector.

    Order 1 in the first and the last step. It is UniPC's predictor alone.
    Source: Lu et al. 2022, "DPM-Solver++", algorithm 2.
    """

    stochastic = False

    def __init__(self, sigmas: Tensor, device: Device = "cpu") -> None:
        """sigmas: (N + 1,), falling to 0, on the CPU; the tables go to `device`, the samples'."""
        values, steps = [float(s) for s in sigmas], range(len(sigmas) - 1)
        self.sigmas = sigmas[:-1].float().to(device)  # (N,)
        # Columns: weights of (sample, m[k], m[k-1]).
        self.weights = torch.tensor([_predictor(values, k) for k in steps], device=device)

    def start(self, x: Tensor) -> SolverState:
        return SolverState({"m1": torch.zeros_like(x)})

    def step(
        self,
        state: SolverState,
        x: Tensor,
        velocity: Tensor,
        step: Tensor,
        update: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        moved, m1 = per_frame(update), state.history["m1"]
        m0 = x - velocity * per_frame(self.sigmas[step])
        w = self.weights[step]  # (F, 3)
        following = per_frame(w[:, 0]) * x + per_frame(w[:, 1]) * m0 + per_frame(w[:, 2]) * m1
        state.history["m1"] = torch.where(moved, m0, m1)
        return torch.where(moved, following, x)


class LCM:
    """Few-step sampling of consistency-distilled models: to x0, and back to the next noise level.

    x = (1 - sigma_next) * x0 + sigma_next * noise, with new noise in every step.
    Source: Luo et al. 2023, "Latent Consistency Models", algorithm 3, on the flow path.
    """

    stochastic = True

    def __init__(self, sigmas: Tensor, device: Device = "cpu") -> None:
        """sigmas: (N + 1,), falling to 0, on the CPU; the tables go to `device`, the samples'."""
        self.sigmas = sigmas.float().to(device)  # (N + 1,)

    def start(self, x: Tensor) -> SolverState:
        return SolverState({})

    def step(
        self,
        state: SolverState,
        x: Tensor,
        velocity: Tensor,
        step: Tensor,
        update: Tensor,
        noise: Tensor | None = None,
    ) -> Tensor:
        assert noise is not None
        x0 = x - velocity * per_frame(self.sigmas[step])
        following = per_frame(self.sigmas[step + 1])
        return torch.where(per_frame(update), (1 - following) * x0 + following * noise, x)


SOLVERS: dict[str, Callable[[Tensor, Device], Solver]] = {
    "unipc": UniPC,
    "euler": Euler,
    "dpmpp_2m": DPMSolver2M,
    "lcm": LCM,
    # Last, and only to compare with the reference; old workflows may name it.
    "unipc_as_shipped": functools.partial(UniPC, as_shipped=True),
}


def _log_snr(sigma: float) -> float:
    """lambda = ln(alpha) - ln(sigma) of the flow path, alpha = 1 - sigma.

    Infinite at sigma 0 and 1, where the formulas have finite limits: a step from sigma 1 is of
    order 1, and so is the next, whose difference of x0 estimates is taken over that interval.
    """
    if sigma >= 1:
        return -math.inf
    return math.log1p(-sigma) - math.log(sigma) if sigma > 0 else math.inf


def _order(k: int, steps: int) -> int:
    return 1 if k in (0, steps - 1) else 2


def _interval(sigmas: list[float], k: int) -> tuple[float, float, float]:
    """h, expm1(-h) and alpha at the end of the interval from sigma[k] to sigma[k + 1]."""
    h = _log_snr(sigmas[k + 1]) - _log_snr(sigmas[k])
    return h, math.expm1(-h), 1 - sigmas[k + 1]


def _ratio(sigmas: list[float], k: int, h: float) -> float:
    """Length of the interval before k against h, negative."""
    return (_log_snr(sigmas[k - 1]) - _log_snr(sigmas[k])) / h


def _predictor(sigmas: list[float], k: int) -> tuple[float, float, float]:
    h, b, alpha = _interval(sigmas, k)
    sample, m0, m1 = sigmas[k + 1] / sigmas[k], -alpha * b, 0.0
    if _order(k, len(sigmas) - 1) == 2:
        difference = -alpha * b * 0.5 / _ratio(sigmas, k, h)
        m0, m1 = m0 - difference, m1 + difference
    return sample, m0, m1


def _corrector(sigmas: list[float], k: int) -> tuple[float, float, float, float]:
    """Redo the interval that ended at k, now that the x0 estimate m[k] at its end is known."""
    if k == 0:
        return 0.0, 0.0, 0.0, 0.0
    h, b, alpha = _interval(sigmas, k - 1)
    sample = sigmas[k] / sigmas[k - 1]
    if _order(k - 1, len(sigmas) - 1) == 1:
        rho_old, rho_new, ratio = 0.0, 0.5, 1.0
    else:
        ratio = _ratio(sigmas, k - 1, h)
        # Solve [[1, 1], [ratio, 1]] rho = (b1, b2), bh2's moments of the interval.
        phi2 = b / -h - 1
        phi3 = phi2 / -h - 0.5
        b1, b2 = phi2 / b, 2 * phi3 / b
        rho_old = (b2 - b1) / (ratio - 1)
        rho_new = b1 - rho_old
    old, new = -alpha * b * rho_old / ratio, -alpha * b * rho_new
    return sample, new, -alpha * b - new - old, old
