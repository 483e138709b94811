"""Films that are made together are those made alone; what fails in one is told to all who wait."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from toy.lockstep import make_together


class Model:
    """Counts its calls; fails for a timestep below 0."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, timestep, context, scale=None):
        self.batches.append(len(x))
        if (timestep < 0).any():
            raise ValueError("a timestep below 0")
        x = x + timestep[:, None] * context
        return x if scale is None else x * scale[:, None]


@dataclass
class Toy:
    transformer: Any


def film(seed, calls, scale=None, width=3):
    """A function that calls the model `calls` times, each time with its last answer."""

    def make(toys):
        generator = torch.Generator().manual_seed(seed)
        x, context = torch.randn(2, 2, width, generator=generator)
        for call in range(calls):
            x = toys["DF"].transformer(x, torch.full((2,), float(call)), context, scale=scale)
        return x

    return make


def test_films_made_together_are_those_made_alone():
    """Of several lengths, sizes and inputs."""
    makes = [film(0, 5), film(1, 2), film(2, 5, torch.tensor([2.0, 3.0])), film(3, 5, width=4)]
    alone = [make({"DF": Toy(Model())}) for make in makes]
    model = Model()
    for found, expected in zip(make_together({"DF": Toy(model)}, makes), alone, strict=True):
        assert torch.equal(found, expected)
    # Two calls as one batch as long as both films go on; the others are of kinds of their own.
    assert sorted(model.batches) == [2] * 13 + [4] * 2


def test_what_fails_is_raised_and_nobody_waits_for_ever():
    def fails(toys):
        toys["DF"].transformer(torch.zeros(2, 3), torch.full((2,), -1.0), torch.zeros(2, 3))

    def gives_up(_toys):
        raise KeyError("no such scene")

    with pytest.raises(RuntimeError, match="made together"):
        make_together({"DF": Toy(Model())}, [film(0, 3), fails])
    with pytest.raises(KeyError, match="no such scene"):
        make_together({"DF": Toy(Model())}, [gives_up, film(0, 3)])
