"""Block-causal films by kept keys and values: equal to the dense mask, for what moves alone."""

import dataclasses

import pytest
import torch

from skyreels_model.attention import block_causal, sdpa
from skyreels_model.cache.keys_values import CausalVelocity, KeysValues
from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.history import history_of

LAYERS, DIM = 2, 48
PLAN = FilmPlan(
    num_frames=45, width=32, height=32, window=29, overlap=9, steps=4, ar_step=2, block_size=2,
    prefix_noise=0, history="latents",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(dim=DIM, ffn_dim=64, num_heads=2, num_layers=LAYERS, text_dim=8)
    made = SkyReelsModel(config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.normal_(std=0.1, generator=generator)
    return made


TEXT = torch.randn(1, 512, 8, generator=torch.Generator().manual_seed(1))


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("keeps", [(2, 4), (6,), (0, 2, 0, 2)])
@torch.no_grad()
def test_a_forward_is_that_of_the_dense_mask(model, keeps):
    x, t = torch.randn(1, 16, 8, 4, 4), torch.tensor([[0, 0, 0, 0, 100, 100, 900, 900]])
    dense = model(x, t, TEXT, causal_block_size=2)
    kept = KeysValues()
    for keep in keeps:
        begin = kept.frames
        made = kept.forward(model, x[:, :, begin:], t[:, begin:], TEXT, 2, keep)
        assert relative(made, dense[:, :, begin:]) < 1e-5
    assert kept.frames == sum(keeps) and len(kept.layers) == LAYERS
    assert kept.bytes == LAYERS * 2 * kept.frames * 4 * DIM * 4
    kept.cut(2)
    assert relative(kept.forward(model, x[:, :, 2:], t[:, 2:], TEXT, 2), dense[:, :, 2:]) < 1e-5


def films(model, given, **changes):
    """The finished windows by the dense mask, by kept keys and values, and frames of its calls."""
    conditions = Conditions(**given)
    plan = dataclasses.replace(PLAN, **changes).fit(conditions.counts)
    seen = []

    masked = block_causal(sdpa, 4 * plan.block_size)

    def run(index, block, x, inputs):
        return block(x, dataclasses.replace(inputs, attend_self=masked))

    def dense(x, t):
        return model(x, t, TEXT, run_block=run)

    def ask(kept, x, t, keep):
        seen.append(x.shape[2])
        return kept.forward(model, x, t, TEXT, plan.block_size, keep)

    found = []
    for way in ("dense", "kept"):
        film = Film(plan, conditions=conditions)
        velocity = dense if way == "dense" else CausalVelocity(film, ask)
        with torch.no_grad():
            for _ in generate(
                velocity, plan, SeededNoise(1), history_of(plan, None, None), film=film
            ):
                pass
        found.append(film.finished)
    return (*found, seen)


@pytest.mark.parametrize(
    ("changes", "given"),
    [
        ({}, {}),
        ({"ar_step": 0}, {}),
        ({"block_size": 3}, {"start": torch.ones(1, 16, 4, 4, 4)}),
        ({"block_size": 1}, {"pictures": {3: torch.ones(1, 16, 1, 4, 4)}}),
    ],
    ids=["asynchronous", "synchronous", "a start within a block", "a picture on the way"],
)
def test_films_are_those_of_the_dense_mask(model, changes, given):
    dense, kept, _ = films(model, given, **changes)
    assert len(dense) == len(kept)
    for one, other in zip(kept, dense, strict=True):
        assert relative(one, other) < 1e-5


def test_a_call_costs_the_blocks_at_work_however_many_are_done(model):
    """At most the two of 4 steps that are 2 calls apart, and once each that is done."""
    for frames, blocks in ((53, 7), (101, 13)):
        *_, seen = films(model, {}, num_frames=frames, window=frames)
        assert max(seen) == 6 and sum(count == 6 for count in seen) == blocks - 2
