"""Frames that rest by their kept keys and values: equal to the whole model, or near to it."""

import dataclasses

import pytest
import torch

from skyreels_model.attention import block_causal, sdpa
from skyreels_model.cache.kept_frames import FrameKeeper, Keeping, KeptVelocity
from skyreels_model.cache.keys_values import (
    KeysValues,
    RowForward,
    RowFrames,
    Storage,
    frame_bytes,
)
from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.positions import AT_INDICES, Positions
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.resting import most_finished, share_computed
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.history import history_of
from skyreels_model.schedule.flow import RowLevels

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


TEXT = torch.zeros(1, 512, 8)
TEXT[:, :6] = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))


def relative(a, b):
    return float((a - b).norm() / b.norm())


def forward(model, kept, row, x, t, positions=AT_INDICES, **how):
    """Of the frames that a row computes, by what is kept for one prompt."""

    def call(x, timestep, **how):
        return model(x, timestep, TEXT, **how)

    return RowForward([kept], row, positions).run(call, x, t, **how)


@pytest.mark.parametrize("keeps", [(2, 4), (6,), (0, 2, 0, 2)])
@torch.no_grad()
def test_a_forward_is_that_of_the_dense_mask(model, keeps):
    x, t = torch.randn(1, 16, 8, 4, 4), torch.tensor([[0, 0, 0, 0, 100, 100, 900, 900]])
    dense = model(x, t, TEXT, causal_block_size=2)
    kept, begin = KeysValues(), 0
    for keep in keeps:
        row = RowFrames(tuple(range(begin, 8)), tuple(range(begin + keep)), block=2)
        made = forward(model, kept, row, x, t)
        assert relative(made[:, :, begin:], dense[:, :, begin:]) < 1e-5
        assert not made[:, :, :begin].any()
        begin += keep
    assert list(kept.frames) == list(range(sum(keeps)))
    assert kept.nbytes == sum(keeps) * frame_bytes(4, DIM, LAYERS, 4)


@torch.no_grad()
def test_frames_that_see_all_are_computed_alone_wherever_they_lie(model):
    """What is kept of the same noise levels and latents is what would be computed again."""
    x, t = torch.randn(1, 16, 6, 4, 4), torch.tensor([[0, 500, 0, 900, 900, 0]])
    whole, kept = model(x, t, TEXT), KeysValues()
    first = forward(model, kept, RowFrames(tuple(range(6)), (0, 2, 5)), x, t)
    assert torch.equal(first, whole)
    part = forward(model, kept, RowFrames((1, 3, 4)), x, t)
    assert relative(part[:, :, [1, 3, 4]], whole[:, :, [1, 3, 4]]) < 1e-5
    assert not part[:, :, [0, 2, 5]].any() and not kept.frames


@pytest.mark.parametrize(
    ("storage", "most"),
    [(Storage(in_ram=True), 1e-6), (Storage(narrow=True), 0.03), (Storage(True, True), 0.03)],
)
@torch.no_grad()
def test_storages_give_back_what_they_keep(model, storage, most):
    x, t = torch.randn(1, 16, 6, 4, 4), torch.tensor([[0, 0, 0, 900, 900, 900]])
    exact, other = KeysValues(), KeysValues(storage)
    found = []
    for kept in (exact, other):
        forward(model, kept, RowFrames(tuple(range(6)), (0, 1, 2)), x, t)
        found.append(forward(model, kept, RowFrames((3, 4, 5), (0, 1, 2)), x, t))
    assert 0 <= relative(found[1], found[0]) < most
    itemsize = 1 if storage.narrow else 4
    assert other.nbytes == 3 * frame_bytes(4, DIM, LAYERS, itemsize)


@pytest.mark.parametrize("positions", [Positions(), Positions((0.5, 1.0, 1.0), (3.0, 0.0, 0.0))])
@torch.no_grad()
def test_a_view_that_moves_on_turns_its_keys_to_their_new_places(model, positions):
    """What is two frames apart is so wherever it lies; sinks stay where they are."""
    x, t = torch.randn(1, 16, 8, 4, 4), torch.tensor([[0, 0, 0, 0, 0, 0, 900, 900]])
    kept = KeysValues()
    forward(model, kept, RowFrames(tuple(range(8)), tuple(range(6)), 2), x, t, positions)
    first, near = kept.frames[0], {place: kept.frames[place] for place in (4, 5)}
    here, there = KeysValues(frames=dict(near)), KeysValues(frames=dict(near))
    there.slide(2)
    assert list(there.frames) == [2, 3]
    made = forward(model, here, RowFrames((6, 7)), x, t, positions)
    moved = forward(model, there, RowFrames((4, 5)), x[:, :, 2:], t[:, 2:], positions)
    assert relative(moved[:, :, 4:], made[:, :, 6:]) < 1e-5
    kept.slide(2, sinks=2)
    assert list(kept.frames) == [0, 1, 2, 3] and kept.frames[0] is first
    assert kept.frames[2] is near[4]


@torch.no_grad()
def test_a_call_that_fails_leaves_what_was_kept(model):
    x, t = torch.randn(1, 16, 4, 4, 4), torch.tensor([[0, 0, 900, 900]])
    kept = KeysValues()
    forward(model, kept, RowFrames((0, 1, 2, 3), (0,)), x, t)

    def fail(index, block, stream, inputs):
        if index == 1:
            raise RuntimeError("out of memory")
        return block(stream, inputs)

    before = dict(kept.frames)
    with pytest.raises(RuntimeError):
        forward(model, kept, RowFrames((1, 2, 3), (0, 1)), x, t, run_block=fail)
    assert kept.frames == before


def films(model, given, keeping, whole=None, ways=("whole", "kept"), **changes):
    """The finished windows of the whole model, of kept frames, and the frames of its calls.

    whole: how the model's blocks attend in the first. ways: which of the two are made.
    """
    conditions = Conditions(**given)
    plan = dataclasses.replace(PLAN, **changes).fit(conditions.counts)
    seen, made = [], []

    def run(index, block, x, inputs):
        attend = whole(plan) if whole else inputs.attend_self
        return block(x, dataclasses.replace(inputs, attend_self=attend))

    def call(x, timestep, **how):
        seen.append(x.shape[2])
        return model(x, timestep, TEXT, **how)

    def ask(keeper, x, t):
        return keeper.forward(("prompt",), call, x, t)

    for way in ways:
        film = Film(plan, conditions=conditions)
        velocity = lambda x, t: model(x, t, TEXT, run_block=run)  # noqa: E731
        if way == "kept":
            velocity = KeptVelocity(film, keeping(plan), ask)
        with torch.no_grad():
            for _ in generate(
                velocity, plan, SeededNoise(1), history_of(plan, None, None), film=film
            ):
                pass
        made.append(film.finished)
    return (*made, seen)


def blocks(plan):
    return Keeping(block=plan.block_size)


def mask(plan):
    return block_causal(sdpa, 4 * plan.block_size)


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
    dense, kept, _ = films(model, given, blocks, mask, **changes)
    assert len(dense) == len(kept)
    for one, other in zip(kept, dense, strict=True):
        assert relative(one, other) < 1e-5


def test_a_call_costs_the_blocks_at_work_however_many_are_done(model):
    """At most the two of 4 steps that are 2 calls apart, and once each that is done."""
    for frames, count in ((53, 7), (101, 13)):
        _, seen = films(model, {}, blocks, ways=["kept"], num_frames=frames, window=frames)
        assert max(seen) == 6 and sum(one == 6 for one in seen) == count - 2


def test_a_sliding_film_of_blocks_has_constant_memory_and_cost(model):
    """However long it is: its sinks, and what its view shows."""
    most = []
    for frames in (61, 93):
        bytes_kept = []

        def keeping(plan):
            return Keeping(block=plan.block_size, sinks=2)

        def note(self, *given, run=RowForward.run, found=bytes_kept):
            out = run(self, *given)
            found.append(self.stores[0].nbytes)
            return out

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RowForward, "run", note)
            changes = {"sliding": True, "num_frames": frames, "ar_step": 4}
            _, seen = films(model, {}, keeping, ways=["kept"], **changes)
        most.append((max(bytes_kept), max(seen)))
    assert most[0] == most[1] == (6 * frame_bytes(4, DIM, LAYERS, 4), 4)


@pytest.mark.parametrize("sliding", [False, True])
def test_frames_computed_in_every_call_are_the_whole_film(model, sliding):
    changes = {"sliding": sliding, "num_frames": 61}
    whole, kept, _ = films(model, {}, lambda plan: Keeping(every=1), **changes)
    for one, other in zip(kept, whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("every", [3, 100])
def test_frames_that_rest_are_computed_once_in_so_many_calls(model, every):
    """Five blocks of 2, of 4 steps, 2 calls apart: 12 calls in which block b is done after 4 + 2b.

    The film is near that of all frames, for what is kept is of the same latents.
    """
    whole, kept, seen = films(
        model, {}, lambda plan: Keeping(every=every), num_frames=37, window=37
    )
    expected = []
    known = 0
    for row in range(12):
        done = min(max((row - 4) // 2 + 1, 0), 5) * 2
        known = 0 if row % every == 0 else known
        expected.append(10 - min(known, done))
        known = done
    assert seen == expected
    plan = dataclasses.replace(
        PLAN, num_frames=37, window=37, finished_frames="kept", refresh_every=every
    )
    assert share_computed(plan) == pytest.approx(sum(expected) / 120)
    assert most_finished(plan) == 8
    assert 0 < relative(kept[0], whole[0]) < 0.05


@torch.no_grad()
def test_prompts_are_the_same_in_any_batch(model):
    """What is kept is each prompt's own; one that is new is computed whole with its batch."""
    film = Film(PLAN)
    film.rows = 9
    sigmas = torch.tensor([0.0, 0.0, 0.9, 0.9])
    film.levels = RowLevels(sigmas, sigmas, sigmas > 0, sigmas < 0)
    texts = {"a": TEXT, "b": TEXT * 2, "c": TEXT * 3}
    x, t, seen = torch.randn(1, 16, 4, 4, 4), torch.tensor([[0, 0, 900, 900]]), []

    def ask(keeper, prompts):
        def call(x, timestep, **how):
            seen.append(x.shape[2])
            return model(x, timestep, torch.cat([texts[name] for name in prompts]), **how)

        both = [given.repeat(len(prompts), *[1] * (given.ndim - 1)) for given in (x, t)]
        return dict(zip(prompts, keeper.forward(prompts, call, *both).split(1), strict=True))

    apart, together = (FrameKeeper(film, Keeping(every=100)) for _ in range(2))
    one = [{**ask(apart, ("a",)), **ask(apart, ("b",))} for _ in range(2)]
    two = [ask(together, prompts) for prompts in (("a", "b"), ("b", "a"))]
    assert seen == [4, 4, 2, 2, 4, 2]
    for before, after in zip(one, two, strict=True):
        for name in ("a", "b"):
            assert relative(after[name], before[name]) < 1e-5
    ask(together, ("a", "c"))
    ask(together, ("a", "c"))
    assert seen[-2:] == [4, 2]
