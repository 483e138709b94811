"""Frames that wait, left out of model calls until they begin."""

import copy
import dataclasses

import pytest
import torch

from skyreels_model.cache.forecast import Forecast
from skyreels_model.cache.settings import CacheSettings
from skyreels_model.cache.velocity import CachedVelocity
from skyreels_model.plan.film_plan import SHOWN_AHEAD, FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.plan.summary import describe_plan
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.history import history_of
from skyreels_model.schedule.matrix import count_visible
from skyreels_model.store.keys import window_keys

PLAN = FilmPlan(
    num_frames=57, width=16, height=16, window=33, overlap=9, steps=4, ar_step=2, history="latents"
)


def latents(count, seed=0):
    return torch.randn(1, 16, count, 2, 2, generator=torch.Generator().manual_seed(seed))


FILMS = {
    "windows": ({}, {}),
    "blocks": ({"block_size": 4, "num_frames": 61}, {}),
    "a start within a block": ({"block_size": 3}, {"start": latents(2)}),
    "a picture after the end": ({}, {"end": latents(1)}),
    "pictures": ({"block_size": 3}, {"pictures": {4: latents(1), 7: latents(1), 12: latents(1)}}),
    "a block of pictures": ({"block_size": 1}, {"pictures": {2: latents(1), 3: latents(1)}}),
    "made backwards": ({}, {"following": latents(2)}),
    "sliding": ({"sliding": True}, {}),
    "sliding, with a picture": (
        {"sliding": True, "block_size": 2, "window": 25},
        {"pictures": {8: latents(1)}},
    ),
    "shots": ({"shots": (Shot(29), Shot(28, cut=True))}, {}),
}


def uncoupled(x, t):
    """A velocity in which no frame knows of another."""
    return 0.7 * x + (t / 2000)[:, None, :, None, None]


def coupled(x, t):
    return uncoupled(x, t) - 0.2 * x.mean(dim=2, keepdim=True)


def film(changes, given, velocity=uncoupled, idle="left_out", solver="unipc", seen=None):
    """A finished film; of each call `seen` is given its levels and what the model was shown."""
    conditions = Conditions(**given)
    plan = dataclasses.replace(PLAN, idle_frames=idle, **changes).fit(conditions.counts)
    made = Film(plan, solver, conditions=conditions)

    def watched(x, t):
        if seen is not None:
            seen.append((made.window, made.row, t[0].tolist()))
        return velocity(x, t)

    for _ in generate(watched, plan, SeededNoise(1), history_of(plan, None, None), film=made):
        pass
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", FILMS)
def test_frames_that_do_not_know_of_each_other_become_the_same(name):
    for solver in ("unipc", "lcm"):
        left, whole = (
            film(*FILMS[name], idle=idle, solver=solver).finished
            for idle in ("left_out", "computed")
        )
        assert all(map(torch.equal, left, whole)) and len(left) == len(whole)


@pytest.mark.parametrize("name", FILMS)
def test_each_call_shows_all_that_does_not_wait_and_one_frame_more(name):
    seen, whole = [], []
    made = film(*FILMS[name], seen=seen)
    film(*FILMS[name], idle="computed", seen=whole)
    first = int(made.plan.schedule().timesteps[0])
    assert len(seen) == len(whole) == made.plan.total_rows()
    for (window, row, shown), (_, _, all_of_it) in zip(seen, whole, strict=True):
        assert shown == all_of_it[: len(shown)]
        rest, matrix = all_of_it[len(shown) :], made.plan.window_at(window)
        assert set(rest) <= {first}
        if rest and not made.plan.sliding:
            index = made.plan.rows(matrix).part(row, row + 1).index[0]
            assert index[len(shown) - SHOWN_AHEAD :].tolist() == [0] * (len(rest) + SHOWN_AHEAD)
            assert index[len(shown) - SHOWN_AHEAD - 1] > 0


@pytest.mark.parametrize("name", [name for name in FILMS if "sliding" not in name])
def test_the_summary_counts_what_is_shown(name):
    seen, whole = [], []
    plan = film(*FILMS[name], seen=seen).plan
    film(*FILMS[name], idle="computed", seen=whole)
    share = sum(len(t) for *_, t in seen) / sum(len(t) for *_, t in whole)
    assert plan.share_shown() == pytest.approx(share)
    assert (share < 1) == (name != "made backwards")
    assert f"{share:.0%} of the frames are computed" in describe_plan(plan)


def test_what_is_given_after_frames_that_wait_stays_in_view():
    one, other = (film({}, {"end": latents(1, seed)}, velocity=coupled).finished for seed in (1, 2))
    assert torch.equal(one[0], other[0]) and not torch.allclose(one[-1], other[-1])
    left, whole = (film({}, {}, coupled, idle).finished for idle in ("left_out", "computed"))
    assert not torch.allclose(left[0], whole[0])


def test_a_row_is_cut_after_the_last_frame_that_does_not_wait():
    for index, ahead, visible in (
        ([5, 2, 0, 0], 0, 2),
        ([5, 2, 0, 0], 1, 3),
        ([5, 2, 0, 0], 9, 4),
        ([2, 0, 5, 0], 0, 3),
        ([2, 0, 0, 5], 0, 4),
        ([0, 0, 0, 0], 0, 4),
    ):
        assert count_visible(torch.tensor(index), ahead) == visible


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"ar_step": 0}, "ar_step is 0"), ({"denoise": 0.6}, "source film"), ({"sliding": True}, "")],
)
def test_where_it_does_nothing_it_says_so(changes, words):
    plan = dataclasses.replace(PLAN, idle_frames="left_out", **changes)
    assert f"idle_frames left_out: {'no effect' * bool(words)}" in describe_plan(plan)
    assert words in describe_plan(plan) and plan.leaves_out == (not words)
    assert "idle_frames" not in describe_plan(dataclasses.replace(plan, idle_frames="computed"))


def test_a_source_film_is_seen_whole():
    seen = []
    film({"denoise": 0.5}, {"source": latents(15)}, seen=seen)
    assert {len(t) for *_, t in seen} == {9}


def test_hours_of_film_are_counted_at_once():
    plan = dataclasses.replace(PLAN, num_frames=4_000_001, idle_frames="left_out")
    assert 0.8 < plan.share_shown() < 1


@pytest.mark.parametrize("sliding", [False, True])
def test_forecasts_of_model_calls_go_with_it(sliding):
    """A frame that comes into view is asked for before it is forecast."""
    changes = {"sliding": sliding, "steps": 12, "ar_step": 3, "block_size": 2, "shift": 5.0}
    plan = dataclasses.replace(PLAN, idle_frames="left_out", **changes)
    whole, made = film(changes, {}, coupled), {}
    for threshold in (0.0, 0.1, 1.0):
        made[threshold] = one = Film(plan)
        velocity = CachedVelocity(one, coupled, Forecast(CacheSettings(threshold)))
        for _ in generate(velocity, plan, SeededNoise(1), history_of(plan, None, None), film=one):
            pass
    assert all(map(torch.equal, made[0.0].finished, whole.finished))
    errors = [(made[t].finished[0] - whole.finished[0]).norm() for t in (0.1, 1.0)]
    assert 0 < errors[0] < errors[1] < 0.1 * whole.finished[0].norm()
    assert 0 < made[0.1].skipped < made[1.0].skipped


def test_interrupted_and_resumed_equals_never_interrupted():
    plan = dataclasses.replace(PLAN, idle_frames="left_out")
    whole = film({}, {}, coupled)
    for stop in (1, 6, 23):
        made = Film(plan)
        run = generate(coupled, plan, SeededNoise(1), history_of(plan, None, None), film=made)
        for _ in range(stop):
            next(run)
        resumed = copy.deepcopy(made)
        for _ in generate(
            coupled, plan, SeededNoise(1), history_of(plan, None, None), film=resumed
        ):
            pass
        assert all(map(torch.equal, resumed.finished, whole.finished))


def test_a_stored_window_is_not_taken_for_one_of_the_other_way():
    keys = [
        window_keys(
            dataclasses.replace(PLAN, idle_frames=idle), Conditions(), "unipc", lambda window: {}
        )
        for idle in ("computed", "left_out")
    ]
    assert all(one.key != other.key for one, other in zip(*keys, strict=True))
    assert keys[0][0].differences(keys[1][0].parts) == ["schedule"]


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="idle_frames"):
        dataclasses.replace(PLAN, idle_frames="off")
