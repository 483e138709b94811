"""Drawing the next token, by numbers that are the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import Sampling


class Draw:
    """Scores (1, V) to scores in which only the drawn token is possible.

    For `generate` without sampling: what it would draw itself depends on the device, and on
    whatever else draws from PyTorch's own generator. On the CPU they are the numbers that it draws.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, _tokens: Tensor, scores: Tensor) -> Tensor:
        chances = scores.float().cpu().softmax(-1)
        drawn = torch.multinomial(chances, 1, generator=self._generator).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def make_processors(sampling: Sampling, first: Sequence[Any] = ()) -> Any:
    """What `generate` does with scores before it takes the highest: transformers' own, and a draw.

    first: what comes before them. At temperature 0 the likeliest token is taken, and only the
    repetition penalty counts.
    """
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps: list[Any] = [*first]
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty)))
    if sampling.temperature > 0:
        if sampling.temperature != 1:
            steps.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(float(sampling.top_p)))
        steps.append(Draw(sampling))
    return LogitsProcessorList(steps)
