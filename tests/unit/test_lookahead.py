"""Which of the coming model calls are made: what forecasts are expected to miss, at least cost."""

import dataclasses
import itertools

import pytest
import torch

from skyreels_model.cache.curves import Curves
from skyreels_model.cache.lookahead import (
    LONGEST,
    USUAL_STEP,
    Answers,
    Course,
    _choose,
    _expect,
    count_forecasts,
)
from skyreels_model.cache.velocity import Call
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.schedule import RowLevels

SIGMAS = torch.arange(10, -1, -1) / 10


def call(levels, moves, sigmas=SIGMAS, row=0, rows=100):
    levels, moves = torch.tensor(levels), torch.tensor(moves)
    one = RowLevels(levels, levels, moves, ~moves & moves)
    x = torch.zeros(1, 1, len(levels), 1, 1)
    return Call(x, levels[None] * 1000, one, 0, row, rows, sigmas)


def curves(slope, bend, jump):
    made = Curves.unknown()
    for table, value in zip(vars(made).values(), (slope, bend, jump), strict=True):
        table[:] = value
    return made


@pytest.mark.parametrize("ar_step", [0, 2])
def test_the_course_is_what_the_plan_will_do(ar_step):
    """As long as no other frame begins."""
    plan = FilmPlan(
        num_frames=17, window=17, overlap=9, width=16, height=16, steps=6, shift=3.0,
        ar_step=ar_step,
    )  # fmt: skip
    film, seen = Film(plan), []

    def velocity(x, t):
        seen.append(film.levels)
        return x

    for _ in generate(velocity, plan, SeededNoise(1), film=film):
        pass
    for row, levels in enumerate(seen):
        place = torch.zeros(1, 1, len(levels.sigmas), 1, 1)
        course = Course.of(Call(place, place, levels, 0, row, len(seen), plan.schedule().sigmas))
        assert len(course.sigmas) == min(13, len(seen) - row)
        for ahead, later in enumerate(seen[row : row + 13]):
            if not torch.equal(
                later.moves | (later.sigmas == 0), levels.moves | (levels.sigmas == 0)
            ):
                break
            assert torch.equal(course.sigmas[ahead], later.sigmas)
            moved = torch.where(later.moves, later.sigmas - later.after, 0.0)
            assert torch.equal(course.steps[ahead], moved)
            assert torch.equal(course.last[ahead], later.moves & (later.after == 0))
            done = (seen[row].moves & (later.sigmas == 0)).sum() if ar_step else int(ahead > 99)
            assert course.phases[ahead] == done


def test_what_forecasts_are_expected_to_miss_by_hand():
    """One frame takes its last step in the first call, the other is at 0.6 then.

    Answers were given at 0.8 and 0.7. Lines bend by 5, held answers go by 1 and by 0.25 over the
    jump.
    """
    course = Course.of(call([0.1, 0.6], [True, True]))
    assert course.phases.tolist()[:3] == [0, 1, 1] and course.last[:, 0].tolist()[:2] == [
        True,
        False,
    ]
    gone = torch.tensor([-0.1, -0.1])
    misses = _expect(course, Answers(torch.tensor([0.2, 0.7]), gone, 2), curves(1.0, 5.0, 0.25))
    other = misses[..., 1]
    # By the two answers that there are: a line 0.1 on, then held over the jump.
    assert other[0, 1, :3].tolist() == pytest.approx([5 * 0.1 * 0.2, 0.2 + 0.25, 0.3 + 0.25])
    # The first two calls are made: the third is held, for the second answer came after the jump.
    assert float(other[2, 3, 2]) == pytest.approx(0.1)
    # And after the third a line again.
    assert float(other[3, 4, 3]) == pytest.approx(0.1)
    settling = _expect(course, Answers(torch.tensor([0.2, 0.7]), gone, 1), curves(1.0, 5.0, 0.25))
    assert float(settling[0, 1, 0, 1]) == pytest.approx(0.1)


@pytest.mark.parametrize(("threshold", "count"), [(0.291, 0), (0.292, 1)])
def test_an_error_counts_by_the_step_that_it_moves(threshold, count):
    """Frames that miss by 0.1: one takes a step of the usual length, the other four times that.

    The next call is the window's last. Over frames, it is the root of the mean square.
    """
    sigmas = torch.tensor([0.9, 0.9 - USUAL_STEP, 0.9 - 5 * USUAL_STEP, 0.2, 0.0])
    course = Course.of(call([0.9, 0.9 - USUAL_STEP], [True, True], sigmas, row=8, rows=10))
    last = Answers(course.sigmas[0] + 0.1, torch.zeros(2), 1)
    found = count_forecasts(course, last, curves(1.0, 0.0, 0.0), [False, True], threshold**2)
    assert found == count


def test_the_way_that_is_chosen_costs_least():
    """Against all ways to make some of nine calls."""
    rows = 9
    generator = torch.Generator().manual_seed(0)
    for trial in range(6):
        costs = torch.rand(rows + 2, rows + 2, rows, generator=generator).cumsum(2) / 3
        always = [trial % 2 == 1 and row == 4 for row in range(rows)]

        def price_of(made, costs=costs):
            answers = [0, 1, *(row + 2 for row in made)]
            total = 0.5 * len(made)
            pairs = itertools.pairwise(answers)
            for (before, last), following in zip(pairs, [*made, rows], strict=True):
                if following > last - 1:
                    total += float(costs[before, last, following - 1])
            return total

        ways = [
            made
            for count in range(rows + 1)
            for made in itertools.combinations(range(rows), count)
            if all(row in made for row in range(rows) if always[row])
            and all(b - a <= LONGEST for a, b in itertools.pairwise([-1, *made, rows]))
        ]
        best = min(ways, key=price_of)
        assert _choose(costs.tolist(), always, 0.5) == [*best, rows][0]


def test_nothing_is_forecast_over_what_is_not_known():
    course = Course.of(call([0.2, 0.7], [True, True]))
    answers = Answers(torch.tensor([0.3, 0.8]), torch.tensor([-0.1, -0.1]), 2)
    free = [False] * len(course.sigmas)
    known = curves(0.0, 0.0, 0.0)
    assert count_forecasts(course, answers, known, free, 1.0) == LONGEST - 1
    for name, at, count in (
        ("bends", 100, 1),
        ("bends", slice(None), 0),
        ("jumps", slice(None), 2),
    ):
        less = dataclasses.replace(known, **{name: getattr(known, name).clone()})
        getattr(less, name)[at] = -1.0
        assert count_forecasts(course, answers, less, free, 1.0) == count
