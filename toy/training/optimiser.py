"""Muon for matrices and convolutions, AdamW for the rest, and a running mean of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Coefficients of the quintic iteration; source: Keller Jordan 2024, "Muon".
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 4


def orthogonalised(matrices: Tensor) -> Tensor:
    """Newton-Schulz: (N, rows, columns) to nearly orthogonal matrices of the same row space."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    # Published in bfloat16, whose products take many CPUs 20 times as long as float32's.
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; parameters of three and more axes as matrices.

    Unlike `torch.optim.Muon` it takes convolutions, and does all parameters of a shape at once.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape[0], math.prod(p.shape[1:])].append(p)
            for (rows, columns), params in by_shape.items():
                updates = torch.stack([self._momentum(p).view(rows, columns) for p in params])
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, update in zip(params, orthogonalised(updates), strict=True):
                    p.add_(update.reshape(p.shape), alpha=-rate)

    def _momentum(self, p: nn.Parameter) -> Tensor:
        """Nesterov's look-ahead of the gradient."""
        buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(buffer, MOMENTUM)


class Optimiser:
    """Both optimisers over named parameters, with one learning-rate factor for both.

    `is_matrix(name, parameter)` says which of them Muon takes.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        is_matrix: Callable[[str, nn.Parameter], bool],
        muon_lr: float,
        adam_lr: float,
    ) -> None:
        matrices, rest = [], []
        for name, p in parameters:
            (matrices if is_matrix(name, p) else rest).append(p)
        self.parts: list[torch.optim.Optimizer] = []
        self.rates: list[float] = []
        if matrices:
            self.parts.append(Muon(matrices, muon_lr))
            self.rates.append(muon_lr)
        if rest:
            adam = torch.optim.AdamW(rest, adam_lr, betas=(0.9, 0.98), weight_decay=0.0)
            self.parts.append(adam)
            self.rates.append(adam_lr)

    def step(self, factor: float) -> None:
        """Move all parameters at `factor` of the full rates, and forget their gradients."""
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def cosine(progress: float, warmup: float, floor: float) -> float:
    """Learning-rate factor at `progress` (0..1): up in `warmup`, then down to `floor`."""
    if progress < warmup:
        return progress / warmup
    turned = 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    return floor + (1 - floor) * turned


class Average:
    """Exponential mean of a module's weights; they are what is shipped."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the module; quickly at first, so that its random start is soon forgotten."""
        decay = min(self.decay, (step + 1) / (step + 10))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value, 1 - decay)
