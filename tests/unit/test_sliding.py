"""The one-sequence mode: the closed form is the reference's matrix, and the film has no seams."""

import copy
import dataclasses

import pytest
import torch
from golden_data import models

from skyreels_model.conditions import Conditions
from skyreels_model.plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, film_frames, generate
from skyreels_model.schedule import Staircase, flow_schedule, levels, timestep_matrix

SMALL = FilmPlan(
    num_frames=61, width=16, height=16, window=17, overlap=9, steps=6, ar_step=2, sliding=True
)
# frames, base, ar_step, ready, block, steps
CASES = [
    (12, 5, 2, 0, 1, 6),
    (12, 5, 2, 3, 1, 6),
    (12, 12, 2, 0, 1, 6),
    (20, 10, 3, 4, 2, 9),
    (30, 15, 5, 5, 5, 10),
    (9, 3, 9, 0, 1, 6),
]


@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_references_matrix(case):
    frames, base, ar_step, ready, block, steps = case
    timesteps = flow_schedule(steps, 5.0).timesteps
    whole = timestep_matrix(frames, timesteps, base, ar_step, ready, block)
    staircase = Staircase(frames, block, base // block, steps, min(ar_step, steps), ready)
    assert staircase.rows == whole.rows
    for row in range(whole.rows):
        start, stop = whole.windows[row]
        assert staircase.view(row) == (start, stop)
        index = staircase.index(row)
        assert torch.equal(index, whole.index[row, start:stop])
        assert torch.equal(levels(timesteps)[index], whole.timesteps[row, start:stop])
        moved = (index >= 1) & (index <= steps)
        assert torch.equal(moved, whole.update[row, start:stop])
        assert not whole.update[row, :start].any() and not whole.update[row, stop:].any()


def test_given_frames_longer_than_the_view_do_not_hide_what_moves():
    """Where the reference's view would stay on the given frames."""
    staircase = Staircase(frames=8, block_size=1, base=4, steps=4, lag=4, given=6)
    assert [staircase.view(row) for row in (0, 3, 4, 7)] == [(3, 7), (3, 7), (4, 8), (4, 8)]
    assert [staircase.index(row).tolist() for row in (0, 4)] == [[5, 5, 5, 1], [5, 5, 5, 1]]


def field(x, t):
    """A cheap velocity that couples the frames in view and depends on each one's timestep."""
    return 0.7 * x - 0.2 * x.mean(dim=2, keepdim=True) + t[:, None, :, None, None] / 2000


def make(plan=SMALL, seed=3, film=None, velocity=field):
    film = film or Film(plan)
    events = list(generate(velocity, plan, SeededNoise(seed), film=film))
    return film, events


def test_film_is_one_sequence_of_the_asked_length():
    film, events = make()
    assert len(film.finished) == 1 and film.finished[0].shape == (1, 16, 16, 2, 2)
    assert len(events) == SMALL.total_rows() + 1
    assert film.finished[0].isfinite().all() and not film.passed


def test_view_is_constant_and_every_frame_takes_every_step():
    seen, taken = set(), {}

    def velocity(x, t):
        seen.add(x.shape[2])
        return field(x, t)

    make(velocity=velocity)
    staircase = SMALL.staircase()
    for row in range(staircase.rows):
        start, _ = staircase.view(row)
        for place, step in enumerate(staircase.index(row).tolist()):
            if 1 <= step <= 6:
                taken.setdefault(start + place, []).append(step)
    assert seen == {5} and taken == {latent: [1, 2, 3, 4, 5, 6] for latent in range(16)}


def test_film_in_one_view_is_an_asynchronous_window():
    plan = dataclasses.replace(SMALL, num_frames=17)
    window = dataclasses.replace(plan, sliding=False)

    class FrameNoise(SeededNoise):
        def initial(self, window, shape):
            parts = [SeededNoise.initial(self, k, (1, 16, 1, 2, 2)) for k in range(shape[2])]
            return torch.cat(parts, dim=2)

    film = Film(window)
    list(generate(field, window, FrameNoise(3), film=film))
    assert torch.equal(make(plan)[0].finished[0], film.finished[0])


def test_interrupted_anywhere_and_resumed_equals_never_interrupted():
    whole, _ = make()
    for stop in (1, 5, 9, 20):
        film = Film(SMALL)
        run = generate(field, SMALL, SeededNoise(3), film=film)
        for _ in range(stop):
            next(run)
        resumed, _ = make(film=copy.deepcopy(film))
        assert torch.equal(resumed.finished[0], whole.finished[0])


def test_a_longer_film_begins_like_the_shorter_one():
    """But for the shorter one's last view, in which fewer frames are still noise."""
    short, long = (
        make()[0].finished[0],
        make(dataclasses.replace(SMALL, num_frames=121))[0].finished[0],
    )
    last = SMALL.staircase().view(SMALL.staircase().rows - 1)[0]
    assert torch.equal(short[:, :, :last], long[:, :, :last])


def test_given_start_stays_and_is_shown_noised():
    start = torch.ones(1, 16, 7, 2, 2)  # longer than the view
    conditions = Conditions(start=start)
    plan = conditions.fit(SMALL)
    shown = []

    def velocity(x, t):
        shown.append((x, t))
        return field(x, t)

    film, _ = make(plan, film=Film(plan, conditions=conditions), velocity=velocity)
    assert torch.equal(film.finished[0][:, :, :7], start)
    x, t = shown[0]
    assert t[0].tolist()[:4] == [20] * 4 and t[0, 4] > 900
    noise = (x[:, :, :4] - 0.98) / 0.02
    assert 0.6 < noise.std() < 1.4


def test_decoding_is_one_stream():
    vae, film = models.vae(), make()[0]
    from skyreels_model.vae import denormalize_latents

    whole = vae.decode(denormalize_latents(film.finished[0])).clamp(-1, 1)
    pieces = torch.cat(list(film_frames(film, vae)), dim=2)
    assert pieces.shape[2] == 61 and torch.allclose(pieces, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"ar_step": 1}, ("ar_step is 1", "6 steps", "5 blocks", "at least 2")),
        ({"ar_step": 0}, ("ar_step is 0", "at least 2")),
        ({"block_size": 6}, ("block_size is 6", "5 latent frames")),
        ({"pictures": (3,)}, ("sliding is on", "key and end images")),
        ({"end": True}, ("sliding is on", "key and end images")),
    ],
)
def test_what_cannot_slide_is_told(change, parts):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(SMALL, **change)
    assert all(part in str(error.value) for part in parts), error.value


def test_hours_cost_nothing_up_front():
    plan = FilmPlan(num_frames=24 * 3600 * 100, ar_step=5, sliding=True)
    assert plan.total_rows() == 30 + (plan.latent_frames - 1) * 5
    assert plan.staircase().index(10_000_000).shape == (25,)
