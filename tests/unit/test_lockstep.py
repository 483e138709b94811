"""Films that are made together are those made alone; what fails in one is told to all who wait."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from skyreels_model.vae import VideoVAE
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
    vae: Any = None


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


def test_videos_coded_together_are_those_coded_alone():
    """Of two lengths, one in two pushes; how many go through the VAE at once."""
    torch.manual_seed(0)
    vae, batches = VideoVAE(dim=4), []
    vae.conv2.register_forward_pre_hook(lambda _layer, given: batches.append(len(given[0])))
    latents = [torch.randn(1, 16, length, 2, 2) for length in (3, 3, 2)]

    def make(z):
        def run(toys):
            stream = toys["DF"].vae.decode_stream()
            frames = torch.cat([stream.push(part) for part in z.split(2, dim=2)], dim=2)
            return frames, toys["DF"].vae.encode(frames), toys["DF"].vae.decode(z)

        return run

    with torch.inference_mode():
        alone = [make(z)({"DF": Toy(None, vae)}) for z in latents]
        batches.clear()
        together = make_together({"DF": Toy(None, vae)}, [make(z) for z in latents])
    for found, expected in zip(together, alone, strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert max(batches) == 3 and sum(batches) == 2 * (3 + 3 + 2)


def test_what_fails_is_raised_and_nobody_waits_for_ever():
    def fails(toys):
        toys["DF"].transformer(torch.zeros(2, 3), torch.full((2,), -1.0), torch.zeros(2, 3))

    def gives_up(_toys):
        raise KeyError("no such scene")

    with pytest.raises(RuntimeError, match="made together"):
        make_together({"DF": Toy(Model())}, [film(0, 3), fails])
    with pytest.raises(KeyError, match="no such scene"):
        make_together({"DF": Toy(Model())}, [gives_up, film(0, 3)])
