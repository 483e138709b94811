"""Windows that lead up to another film: backwards from it, or forwards until it is reached."""

import copy
import dataclasses
import itertools
import time

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model.grid import frame_length, latent_length
from skyreels_model.plan.film_plan import HISTORIES, FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, SeededNoise, WindowDone, film_frames, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.film import Tail
from skyreels_model.rollout.history import new_history
from skyreels_model.vae import denormalize_latents, normalize_latents

SIZE = {"width": 16, "height": 16}
NUMBERS = {**SIZE, "window": 17, "overlap": 9, "steps": 3}
WINDOWS = [(9, 5), (17, 9), (17, 13), (33, 17)]


def led(frames, window, overlap, start=0, **changes):
    """A film that leads up to another, which is shown as far as there is room."""
    plan = FilmPlan(num_frames=frames, window=window, overlap=overlap, start=start, steps=2,
                    **SIZE, **changes)  # fmt: skip
    return dataclasses.replace(plan, following=plan.room_after(start))


@pytest.mark.parametrize(("window", "overlap"), WINDOWS)
def test_backwards_each_frame_is_made_once_and_each_window_fills_the_view(window, overlap):
    view = latent_length(window)
    for frames in range(1, 70):
        plan = led(frames, window, overlap)
        assert plan.backwards and plan.following >= 1
        windows = list(plan.windows())
        spans = [plan.new_frames(one) for one in windows]
        assert [b for _, b in spans][0] == frames and [a for a, _ in spans][-1] == 0
        assert all(a == b for (a, _), (_, b) in itertools.pairwise(spans))
        assert all(one.length + one.end <= view and one.end == plan.following for one in windows)
        assert all(one.length + one.end == view for one in windows[:-1])
        for one, (begin, stop) in zip(windows, spans, strict=True):
            # Its last frame is the first of what follows.
            assert frame_length(one.length) == one.skip + (stop - begin) + 1
            assert 0 <= one.skip < 4 and (one.skip == 0 or one is windows[-1])
        starts = sorted((one.start, one.length) for one in windows)
        assert starts[0][0] == 0 and sum(starts[-1]) == plan.latent_frames
        assert all(a + n == b for (a, n), (b, _) in itertools.pairwise(starts))
        assert plan.following_start == 0
        assert plan.total_rows() == sum(plan.matrix(one).rows for one in windows)


@pytest.mark.slow
@pytest.mark.parametrize(("window", "overlap"), WINDOWS)
@pytest.mark.parametrize("start", [1, 2])
def test_forwards_the_last_window_sees_what_follows_in_its_view(window, overlap, start):
    view = latent_length(window)
    for frames in range(start * 4 + 1, 70):
        try:
            plan = led(frames, window, overlap, start)
        except ValueError as error:
            assert "at least 4 must be left" in str(error) or "has room" in str(error)
            continue
        windows = list(plan.windows())
        made = start
        for one in windows:
            assert one.start + one.prefix == made and one.length > one.prefix
            assert one.repeated == (latent_length(overlap) if one.index else 0)
            made = one.start + one.length
            last = one is windows[-1]
            assert one.end == (plan.following if last else 0)
            assert one.length + (one.end if one.end > 1 else 0) <= view
            if last and one.index:
                assert one.length - one.repeated >= min(2, view - one.repeated - one.end)
        assert made == plan.latent_frames == latent_length(frames + 1)
        assert plan.following_start == frame_length(made) - frames - 1 in range(4)
        assert plan.total_rows() == sum(plan.matrix(one).rows for one in windows)
        longer = led(frames + 40, window, overlap, start)
        same = max(len(windows) - 2, 0)
        assert list(longer.windows())[:same] == windows[:same]


@pytest.mark.parametrize("sliding", [False, True])
def test_rows_of_films_with_pictures_are_counted_without_making_all_windows(sliding):
    for frames in (1, 30, 57, 200):
        for following, start, pictures in itertools.product((0, 1), (0, 1), ((), (3,), (4, 5, 37))):
            plan = FilmPlan(num_frames=frames, window=17, overlap=9, steps=4, ar_step=2,
                            sliding=sliding, **SIZE)  # fmt: skip
            end = bool(pictures) and not following
            plan = dataclasses.replace(plan, following=following, end=end)
            if start and plan.latent_frames > 1:
                plan = dataclasses.replace(plan, start=start)
            kept = tuple(p for p in pictures if p < plan.latent_frames)
            plan = dataclasses.replace(plan, pictures=kept)
            assert sum(times for _, times in plan.layout.groups()) == plan.num_windows
            if not sliding:
                rows = sum(plan.matrix(one).rows for one in plan.windows())
                assert plan.total_rows() == rows, (frames, following, start, pictures)
    long = FilmPlan(num_frames=4_000_001, pictures=(7, 900_000), following=2)
    assert long.total_rows() == 30 * long.num_windows + 60


def test_key_frames_backwards_lie_in_the_window_that_makes_them():
    plan = led(57, 33, 17)
    for frame in range(1, 57):
        latent = plan.latent_at(frame)
        (window,) = (w for w in plan.windows() if w.start <= latent < w.start + w.length)
        first, stop = plan.new_frames(window)
        assert first <= frame < stop
        shown = first - window.skip + max(4 * (latent - window.start) - 3, 0)
        assert abs(shown - frame) <= 3


class Watched:
    """A cheap velocity that couples all frames; keeps what it was shown."""

    def __init__(self):
        self.x, self.t = [], []

    def __call__(self, x, t):
        self.x.append(x.clone())
        self.t.append(t[0].tolist())
        return 0.7 * x - 0.2 * x.mean(dim=2, keepdim=True) + t[:, None, :, None, None] / 2000


def latents(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, count, 2, 2, generator=generator)


@pytest.fixture(scope="module")
def vae():
    return models.vae()


def make(film, vae=None, velocity=None):
    velocity = velocity or Watched()
    history = new_history(film.plan, vae)
    for _ in generate(velocity, film.plan, SeededNoise(3), history, film=film):
        pass
    return velocity


def backward_film(frames=29, history="latents", **changes):
    given = Conditions(following=latents(5, 2))
    plan = FilmPlan(**{**NUMBERS, "num_frames": frames, "history": history, **changes}).fit(
        given.counts
    )
    return Film(plan, conditions=given)


@torch.inference_mode()
def test_each_window_is_shown_the_beginning_of_the_one_made_before_it():
    """With carried latents: exactly those behind its first, so nothing goes through the VAE."""
    film = backward_film(prefix_noise=0)
    seen = {}
    velocity, noise, history = Watched(), SeededNoise(3), new_history(film.plan, None)
    for event in generate(velocity, film.plan, noise, history, film=film):
        if isinstance(event, WindowDone):
            seen[event.window.index] = velocity.x[-1]
    assert len(seen) == film.plan.num_windows == 4
    assert torch.equal(seen[0][:, :, -2:], film.conditions.following)
    for index in (1, 2):
        before = film.finished[index - 1]
        assert torch.equal(seen[index][:, :, -2:], before[:, :, 1:3])


@torch.inference_mode()
def test_frames_encoded_again_show_the_same_moments(vae):
    """Through pixels the next window is shown the same frames, encoded as a film of their own."""
    film = backward_film(history="pixels")
    history = new_history(film.plan, vae)
    whole = latents(8, 5)
    given, tail = history(whole, 0, Tail())
    frames = vae.decode(denormalize_latents(whole[:, :, :3])).clamp(-1, 1)
    assert frames.shape[2] == 9 and tail == Tail()
    expected = normalize_latents(vae.encode(frames))[:, :, 1:]
    assert golden_data.relative_l2(given, expected) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("frames", [1, 4, 8, 17, 30])
@torch.inference_mode()
def test_film_has_its_frames_in_order(history, frames, vae):
    film = backward_film(frames, history)
    make(film, vae)
    pieces = torch.cat(list(film_frames(film, vae)), dim=2)
    assert pieces.shape[2] == frames
    own = []
    for window, made in zip(film.plan.windows(), film.finished, strict=True):
        begin, stop = film.plan.new_frames(window)
        decoded = vae.decode(denormalize_latents(made)).clamp(-1, 1)
        own.insert(0, decoded[:, :, window.skip : window.skip + stop - begin])
    assert golden_data.relative_l2(pieces, torch.cat(own, dim=2)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("history", ["latents", "pixels"])
@torch.inference_mode()
def test_interrupted_backwards_and_resumed_equals_never_interrupted(history, vae):
    whole = backward_film(history=history, ar_step=1)
    make(whole, vae)
    events = whole.plan.total_rows() + whole.plan.num_windows
    for stop in range(1, events, 5):
        film = backward_film(history=history, ar_step=1)
        run = generate(Watched(), film.plan, SeededNoise(3), new_history(film.plan, vae), film=film)
        for _ in range(stop):
            next(run)
        resumed = copy.deepcopy(film)
        make(resumed, vae)
        assert all(map(torch.equal, resumed.finished, whole.finished))


def test_a_longer_film_backwards_ends_like_the_shorter_one():
    short, long = backward_film(24), backward_film(48)
    make(short)
    make(long)
    assert len(short.finished) == 3
    assert all(map(torch.equal, short.finished, long.finished))


def test_what_follows_is_noised_in_the_models_eyes_alone():
    film = backward_film(8, prefix_noise=20)
    shown = make(film)
    noise = (shown.x[0][:, :, -2:] - 0.98 * film.conditions.following) / 0.02
    assert shown.t[0][-2:] == [20, 20] and 0.6 < noise.std() < 1.4
    assert film.finished[0].shape[2] == 3


def test_between_two_films_all_given_frames_are_shown():
    given = Conditions(start=latents(1, 3), following=latents(5, 1))
    plan = FilmPlan(**{**NUMBERS, "num_frames": 30, "history": "latents"}).fit(given.counts)
    assert not plan.backwards
    film = Film(plan, conditions=given)
    shown = make(film)
    assert torch.equal(film.finished[0][:, :, :3], given.start)
    noise = (shown.x[-1][:, :, -1:] - 0.98 * given.following) / 0.02
    assert 0.6 < noise.std() < 1.4 and shown.t[-1][-1] == 20


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"following": 2, "end": True}, ("end picture and a clip", "one or the other")),
        ({"following": 4}, ("4 latents of a clip", "has room for 2")),
        ({"following": 2, "start": 3}, ("2 latents of a clip", "has room for 1")),
    ],
)
def test_contradictions_are_told(change, parts):
    with pytest.raises(ValueError) as error:
        FilmPlan(**{**NUMBERS, "num_frames": 40, **change})
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize("overlap", [1, 5])
def test_the_smallest_windows_lead_up_forwards(overlap):
    """A window of two latents has no room to go backwards."""
    numbers = {**SIZE, "window": 9 if overlap == 5 else 5, "overlap": overlap}
    plan = FilmPlan(num_frames=41, steps=2, following=1, **numbers)
    assert plan.backwards == (overlap == 5)
    made = [frames for window in plan.windows() for frames in range(*plan.new_frames(window))]
    assert sorted(made) == list(range(41))


def test_long_films_cost_nothing_up_front():
    begin = time.perf_counter()
    for given in ({"following": 1}, {"following": 1, "start": 1}, {"pictures": (9, 10**6)}):
        plan = FilmPlan(num_frames=4_000_001, window=17, overlap=9, steps=4, **SIZE, **given)
        assert plan.following_start in range(-1, 4) and plan.total_rows() > 10**6
    shots = tuple(Shot(97) for _ in range(1000))
    FilmPlan(num_frames=97000, shots=shots, pictures=tuple(range(40, 9000, 40))).total_rows()
    # Not a measure of speed: a walk over all windows would take minutes.
    assert time.perf_counter() - begin < 30


def test_shots_are_made_forwards_until_what_follows_is_reached():
    shots = (Shot(20), Shot(21))
    plan = FilmPlan(**{**NUMBERS, "num_frames": 41, "shots": shots, "following": 1})
    assert not plan.backwards and plan.latent_frames == latent_length(42)
    assert [w.end for w in plan.windows()] == [0] * (plan.num_windows - 1) + [1]
