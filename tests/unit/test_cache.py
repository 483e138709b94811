"""Model calls that are forecast: when, with what error, and what is remembered for it."""

import dataclasses
import re

import pytest
import torch

from skyreels_model.cache.curves import FORMAT, UNKNOWN, Curves, read_curves
from skyreels_model.cache.forecast import DAMPING, Calibrate, Forecast
from skyreels_model.cache.settings import BOUNDS, CacheSettings
from skyreels_model.cache.velocity import CachedVelocity, Call
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout import Film, RowDone, SeededNoise, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.history import latent_history
from skyreels_model.schedule import RowLevels, flow_schedule

SMALL = FilmPlan(
    num_frames=33, width=16, height=16, window=17, overlap=9, steps=12, shift=5.0, history="latents"
)
ALL = CacheSettings(threshold=1.0, end=0.0)
SIGMAS = torch.arange(10, -1, -1) / 10


def curved(x, t):
    """A velocity that bends with the noise level and couples all frames."""
    level = (t / 1000).float()[:, None, :, None, None]
    return x.mean(dim=2, keepdim=True) * level + x * torch.sin(3 * level) * 0.3


def film(plan, policy=None, velocity=curved, conditions=None, guidance=None):
    """A finished film, the calls that its model saw, and its rows."""
    made, calls = Film(plan, conditions=conditions or Conditions()), []

    def watched(x, t):
        calls.append((made.window, made.row))
        return velocity(x, t)

    given = {} if guidance is None else {"guidance": lambda: guidance(made.sigma)}
    cached = watched if policy is None else CachedVelocity(made, watched, policy, **given)
    events = list(generate(cached, plan, SeededNoise(1), latent_history(3), film=made))
    return made, calls, [event for event in events if isinstance(event, RowDone)]


def levels(sigmas, after=None, moves=None, fresh=None):
    sigmas = torch.tensor(sigmas)
    no = torch.zeros(len(sigmas), dtype=torch.bool)
    return RowLevels(
        sigmas,
        torch.tensor(after) if after else sigmas - 0.1,
        ~no if moves is None else torch.tensor(moves),
        no if fresh is None else torch.tensor(fresh),
    )


def call(row, one, x=None, begin=0, guidance=1.0):
    x = torch.zeros(1, 1, len(one.sigmas), 1, 1) if x is None else x
    return Call(x, (one.sigmas * 1000).long()[None], one, begin, row, 100, SIGMAS, guidance)


def answer(*values):
    """A velocity (1, 1, F, 1, 1)"""
    return torch.tensor(values)[None, None, :, None, None]


@pytest.mark.parametrize("ar_step", [0, 3])
@pytest.mark.parametrize("sliding", [False, True])
def test_threshold_0_makes_every_call_and_the_same_film(ar_step, sliding):
    plan = dataclasses.replace(SMALL, ar_step=ar_step or 3 * sliding, sliding=sliding)
    plain, made, _ = film(plan)
    cached, calls, _ = film(plan, Forecast(CacheSettings(threshold=0.0)))
    assert calls == made and cached.skipped == 0
    assert all(torch.equal(a, b) for a, b in zip(plain.finished, cached.finished, strict=True))


@pytest.mark.parametrize("changes", [{}, {"ar_step": 3}, {"ar_step": 3, "sliding": True}])
def test_rows_tell_how_many_calls_were_left_out(changes):
    plan = dataclasses.replace(SMALL, **changes)
    made, calls, rows = film(plan, Forecast(CacheSettings(0.2, end=0.0)))
    assert len(rows) == plan.total_rows() == len(calls) + made.skipped
    assert made.skipped == rows[-1].skipped > len(rows) / 6
    assert [row.skipped for row in rows] == sorted(row.skipped for row in rows)


@pytest.mark.parametrize("changes", [{}, {"ar_step": 3}, {"ar_step": 3, "sliding": True}])
def test_a_lower_threshold_is_nearer_to_the_film_of_all_calls(changes):
    plan = dataclasses.replace(SMALL, **changes)
    whole = torch.cat(film(plan)[0].finished, dim=2)
    errors, skipped = [], []
    for threshold in (0.005, 0.05, 0.5):
        made, _, _ = film(plan, Forecast(CacheSettings(threshold, end=0.0)))
        errors.append(float((torch.cat(made.finished, dim=2) - whole).norm() / whole.norm()))
        skipped.append(made.skipped)
    assert errors == sorted(errors) and skipped == sorted(skipped) and skipped[0] < skipped[-1]
    assert errors[0] < 0.02


def test_a_line_is_followed_by_hand_computed_weights():
    """At levels 0.9 and 0.8 a frame was 1 and 3: at 0.7 the line says 5, damped less."""
    policy = Forecast(ALL)
    state = policy.record(None, call(0, levels([0.9])), answer(1.0))
    state = policy.record(state, call(1, levels([0.8])), answer(3.0))
    state.bends[:] = state.slopes[:] = 0.0
    got = policy.forecast(state, call(2, levels([0.7])))
    assert got.flatten() == pytest.approx(3 + 2 / (1 + DAMPING))
    got = policy.forecast(state, call(3, levels([0.65])))
    assert got.flatten() == pytest.approx(3 + 2 * 1.5 / (1 + 1.5 * DAMPING))


def test_answers_are_held_until_two_are_given_after_a_frame_finished():
    """The first frame is done after the third call: the line of the second leads on until then."""
    policy, state, guesses = Forecast(ALL), None, []
    first = [0.3, 0.2, 0.1, 0.0, 0.0, 0.0]
    for row, (own, level) in enumerate(zip(first, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), strict=True)):
        one = levels([own, level], moves=[own > 0, True], after=[max(own - 0.1, 0), level - 0.1])
        if state is not None:
            state.view(call(row, one))
            guesses.append(float(state.forecast(call(row, one))[0, 0, 1]))
        known = state and int((state.bends >= 0).sum())
        state = policy.record(state, call(row, one), answer(1.0, float(row)))
        # No line was continued, and none is said to have missed.
        assert row not in (3, 4) or int((state.bends >= 0).sum()) == known
    line = 1 / (1 + DAMPING)
    assert guesses == pytest.approx([0, 1 + line, 2, 3, 4 + line], abs=1e-5)


def test_frames_bend_where_those_before_them_did():
    """Of the frame at 0.7 no line was ever measured there; that of another frame was."""
    state = None
    for row, (first, second, value) in enumerate(
        [(0.9, 1.0, 1.0), (0.8, 1.0, 1.0), (0.7, 0.9, 1 / 0.9), (0.6, 0.8, 1 / 0.9)]
    ):
        moves = [True, second < 1.0]
        one = levels([first, second], moves=moves)
        state = Forecast(ALL).record(state, call(row, one), answer(value, 1.0))
    assert float(state.curves.at(torch.tensor([0.7]))[1]) == pytest.approx(5)


def test_nothing_is_forecast_before_something_is_known():
    state = Forecast(ALL).record(None, call(0, levels([0.9])), answer(1.0))
    assert Forecast(ALL).forecast(state, call(1, levels([0.8]))) is None
    known = Curves.unknown()
    known.slopes[500], known.bends[500] = 0.1, 0.1
    policy = Forecast(dataclasses.replace(ALL, curves=known))
    state = policy.record(None, call(0, levels([0.9])), answer(1.0))
    assert policy.forecast(state, call(1, levels([0.8]))) is not None
    assert int((known.slopes >= 0).sum()) == 1


def test_curves_are_those_that_were_written(tmp_path):
    plan = dataclasses.replace(SMALL, ar_step=3)
    made = Film(plan)
    cached = CachedVelocity(made, curved, Forecast(CacheSettings(0.05)))
    for _ in zip(range(16), generate(cached, plan, SeededNoise(1), film=made), strict=False):
        pass
    made.cache.curves.write(tmp_path / "one.json", {"model": "a model"})
    found = read_curves(tmp_path / "one.json")
    for name in ("slopes", "bends", "jumps"):
        before, after = getattr(made.cache, name), getattr(found, name)
        assert torch.equal(before >= 0, after >= 0) and (after >= 0).any()
        assert after == pytest.approx(before, abs=1e-5)


def test_a_calibration_is_of_all_windows_of_a_film_of_all_calls():
    curves = Curves.unknown()
    plain, calls, _ = film(SMALL)
    made, seen, _ = film(SMALL, Calibrate(curves))
    assert seen == calls and made.skipped == 0
    assert all(torch.equal(a, b) for a, b in zip(plain.finished, made.finished, strict=True))
    levels = flow_schedule(12, 5.0).sigmas[1:-1]
    known = curves.slopes[(levels * 1000).round().long()]
    assert (known >= 0).all() and int((curves.slopes >= 0).sum()) == len(levels)
    before, after = (
        film(SMALL, Forecast(CacheSettings(0.3, end=0.0, curves=c)))[0] for c in (None, curves)
    )
    assert after.skipped > before.skipped


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no calibration of SkyReels-V2 TeaCache: Expecting value"),
        ("[]", "list indices must be integers"),
        ("{}", "it has no 'format'"),
        ('{"format": "2"}', "its format is '2'; it must be"),
        ('{"format": "F", "slopes": {"2": 1}}', "a noise level of its slopes is 2"),
        ('{"format": "F", "slopes": {"0.5": NaN}}', "a number of its slopes is nan"),
        ('{"format": "F", "slopes": {"0.5": -1}}', "a number of its slopes is -1"),
        ('{"format": "F", "slopes": {}, "bends": {}}', "calibration without numbers"),
    ],
)
def test_another_file_is_no_calibration(tmp_path, text, words):
    (tmp_path / "x.json").write_text(text.replace('"F"', f'"{FORMAT}"'), "utf-8")
    with pytest.raises(ValueError, match=f"^x.json is .*{re.escape(words)}"):
        read_curves(tmp_path / "x.json")


def test_a_frame_that_waited_is_held_and_one_that_was_replaced_is_asked_for():
    policy = Forecast(ALL)
    waits = levels([0.9, 0.9], moves=[True, False])
    state = policy.record(None, call(0, waits), answer(1.0, 2.0))
    state = policy.record(state, call(1, levels([0.8, 0.9], moves=[True, False])), answer(2.0, 4.0))
    state.bends[:] = state.slopes[:] = 0.0
    begins = levels([0.7, 0.9])
    assert policy.forecast(state, call(2, begins)).flatten()[1] == 4
    replaced = dataclasses.replace(begins, fresh=torch.tensor([False, True]))
    assert policy.forecast(state, call(2, replaced)) is None


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("known", [True, False])
def test_a_frames_last_step_is_computed_until_it_is_known_how_it_bends(place, known):
    policy, at = Forecast(ALL), [0.2, 0.9]
    state = policy.record(None, call(0, levels(at[::-1] if place else at)), answer(1.0, 1.0))
    state.bends[:] = state.slopes[:] = 0.0
    if not known:
        state.bends[100] = UNKNOWN
    ends = levels([0.8, 0.1] if place else [0.1, 0.8])
    assert (policy.forecast(state, call(1, ends)) is not None) == known


def test_shares_at_the_beginning_and_the_end_are_always_computed():
    settings = CacheSettings(1.0, start=0.25, end=0.25)
    assert [settings.always(row, 8, 8) for row in range(8)] == [True] * 2 + [False] * 4 + [True] * 2
    assert [CacheSettings(1.0, end=0.0).always(row, 3, 3) for row in range(3)] == [False] * 2 + [1]
    # Frames begin one after the other: what ends is the last one's steps, not the film's.
    late = [settings.always(row, 40, 8) for row in range(40)]
    assert late == [True] * 10 + [False] * 28 + [True] * 2
    _, calls, _ = film(SMALL, Forecast(CacheSettings(1.0, start=0.25, end=0.25)))
    first = [row for window, row in calls if window == 0]
    assert first[:3] == [0, 1, 2] and first[-3:] == [9, 10, 11] and len(first) < 12


def test_guidance_that_changes_is_not_forecast_over():
    """A curve that falls to 1 within the film: the calls around the fall are made."""
    _, calls, _ = film(SMALL, Forecast(ALL), guidance=lambda sigma: 6.0 if sigma > 0.85 else 1.0)
    _, steady, _ = film(SMALL, Forecast(ALL), guidance=lambda sigma: 6.0)
    fall = int((flow_schedule(12, 5.0).sigmas > 0.85).sum())
    assert (0, fall) in calls and (0, fall) not in steady


def test_the_state_is_a_few_latents_and_ends_with_its_window():
    made = Film(SMALL)
    cached = CachedVelocity(made, curved, Forecast(ALL))
    for event in generate(cached, SMALL, SeededNoise(1), latent_history(3), film=made):
        if isinstance(event, RowDone):
            tensors = [v for v in vars(made.cache).values() if isinstance(v, torch.Tensor)]
            large = [t for t in tensors if t.shape == made.latents.shape]
            assert len(large) == 2 and sum(t.numel() for t in tensors if t.ndim == 1) < 4000
        else:
            assert made.cache is None


def test_a_batch_is_forecast_as_one():
    policy, state = Forecast(ALL), None
    for row, level in enumerate((0.9, 0.8)):
        one = levels([level])
        state = policy.record(state, call(row, one), torch.full((2, 1, 1, 3, 3), level))
    state.bends[:] = state.slopes[:] = 0.0
    assert policy.forecast(state, call(2, levels([0.7]))).shape == (2, 1, 1, 3, 3)


def test_a_view_that_moves_on_keeps_what_it_knows_of_each_frame():
    policy, state = Forecast(ALL), None
    for row, level in enumerate((0.9, 0.8)):
        one = levels([level] * 3)
        state = policy.record(state, call(row, one), answer(1.0, 2.0, 3.0) * (row + 1))
    state.bends[:] = state.slopes[:] = 0.0
    moved = levels([0.7, 0.7, 0.9], moves=[True, True, False])
    got = policy.forecast(state, call(2, moved, begin=1)).flatten()
    assert got[:2] == pytest.approx([4 + 2 / (1 + DAMPING), 6 + 3 / (1 + DAMPING)])
    # The frame that came into view is unknown, so that its first step is asked for.
    assert policy.forecast(state, call(3, levels([0.6, 0.6, 0.9]), begin=1)) is None


def test_pictures_on_the_way_are_asked_for_when_they_are_regenerated():
    plan = dataclasses.replace(SMALL, num_frames=17, ar_step=3)
    given = Conditions(pictures={2: torch.randn(1, 16, 1, 2, 2)})
    plan = plan.fit(given.counts)
    _, calls, _ = film(plan, Forecast(ALL), conditions=given)
    first = plan.rows(plan.window_at(0)).count - plan.steps
    assert (0, first) in calls and (0, first + 1) not in calls


def test_row_levels_are_those_of_the_solver():
    schedule = flow_schedule(4, 3.0)
    sigmas = schedule.sigmas
    index, moves = torch.tensor([0, 1, 4, 5]), torch.tensor([False, True, True, False])
    row = schedule.row_levels(index, moves, ~moves)
    assert torch.equal(row.sigmas, torch.stack([sigmas[0], sigmas[0], sigmas[3], sigmas[4]]))
    assert torch.equal(row.after, torch.stack([sigmas[0], sigmas[1], sigmas[4], sigmas[4]]))
    assert row.highest == float(sigmas[0])


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), True])
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*; it must be "):
        CacheSettings(**{name: value})
