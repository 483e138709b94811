"""Films with given frames: what the model is shown, what moves, and what is in the film."""

import copy
import itertools

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model.grid import latent_length
from skyreels_model.plan.film_plan import HISTORIES, FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, RowDone, SeededNoise, WindowDone, film_frames, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.history import new_history
from skyreels_model.vae import denormalize_latents

NUMBERS = {"width": 16, "height": 16, "window": 17, "overlap": 9, "steps": 4}


def picture(seed, latents=1):
    """Latents (1, 16, n, 2, 2) that are told apart by their numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, latents, 2, 2, generator=generator)


class Watched:
    """A cheap velocity that couples all frames; keeps what it was shown."""

    def __init__(self):
        self.x, self.t = [], []

    def __call__(self, x, t):
        self.x.append(x.clone())
        self.t.append(t[0].tolist())
        return 0.7 * x - 0.2 * x.mean(dim=2, keepdim=True) + t[:, None, :, None, None] / 2000


def make(film, seed=3, vae=None):
    """Finish a film; the velocity that saw it."""
    velocity = Watched()
    history = new_history(film.plan, vae)
    list(generate(velocity, film.plan, SeededNoise(seed), history, film.solver, film=film))
    return velocity


def film_of(conditions, **changes):
    plan = FilmPlan(**{**NUMBERS, "num_frames": 17, **changes}).fit(conditions.counts)
    return Film(plan, conditions=conditions)


@pytest.mark.parametrize("ar_step", [0, 2])
@pytest.mark.parametrize("start", [None, picture(9)])
def test_a_picture_is_shown_clean_in_its_slot_and_made_anew_when_all_else_is_done(ar_step, start):
    given = Conditions(start=start, pictures={2: picture(1)})
    film = film_of(given, ar_step=ar_step, prefix_noise=0)
    shown = make(film)
    x, t = torch.stack(shown.x)[:, 0], torch.tensor(shown.t)  # (R, 16, F, h, w), (R, F)
    while_others, anew = x[:-4], x[-4:]
    assert (while_others[:, :, 2] == picture(1)[0, :, 0]).all() and (t[:-4, 2] == 0).all()
    # From the window's own noise in this place, its neighbours finished.
    noise = SeededNoise(3).initial(0, (1, 16, 5, 2, 2))
    assert torch.equal(anew[0, :, 2], noise[0, :, 2])
    assert t[-4:, 2].tolist() == film.plan.schedule().timesteps.tolist()
    others = [0, 1, 3, 4]
    assert (t[-4:, others] == 0).all()
    assert torch.equal(film.finished[0][0, :, others], anew[0][:, others])
    final = film.finished[0][0]
    assert not torch.equal(final[:, 2], picture(1)[0, :, 0]), "given pictures do not stay"
    if start is not None:
        assert torch.equal(final[:, 0], start[0, :, 0]), "the start does"


def test_pictures_of_several_windows_are_each_shown_where_they_lie():
    given = Conditions(pictures={1: picture(1), 6: picture(6), 7: picture(7)})
    film = film_of(given, num_frames=41, history="latents", prefix_noise=0)
    starts = {w.index: w.start for w in film.plan.windows()}
    assert [w.pictures for w in film.plan.windows()] == [(1,), (4,), (3,), ()]
    velocity, seen = Watched(), {}
    noise, history = SeededNoise(3), new_history(film.plan, None)
    for event in generate(velocity, film.plan, noise, history, film=film):
        if isinstance(event, RowDone) and event.row == 0:
            seen[event.window.index] = velocity.x[-1][0]
    for window, latent in ((0, 1), (1, 6), (2, 7)):
        slot = latent - starts[window]
        assert torch.equal(seen[window][:, slot], picture(latent)[0, :, 0])


@pytest.mark.parametrize(("ar_step", "block"), [(0, 1), (2, 1), (2, 2), (5, 5)])
@pytest.mark.parametrize("frames", [17, 29])
def test_an_end_picture_is_shown_behind_the_film_and_is_not_in_it(ar_step, block, frames):
    given = Conditions(end=picture(5))
    numbers = {"num_frames": frames, "ar_step": ar_step, "block_size": block, "history": "latents"}
    film, without = film_of(given, **numbers), Film(FilmPlan(**{**NUMBERS, **numbers}))
    shown, others = make(film), make(without)
    # No row more than without it (the reference has rows in which its end block is "denoised").
    assert len(shown.x) == len(others.x) == film.plan.total_rows()
    last = film.plan.matrix(film.plan.window_at(film.plan.num_windows - 1)).rows
    for x, t in zip(shown.x[-last:], shown.t[-last:], strict=True):
        assert torch.equal(x[:, :, -1:], picture(5)) and t[-1] == 0
    assert all(torch.equal(a, b) for a, b in zip(shown.x[:-last], others.x[:-last], strict=True))
    lengths = [w.shape[2] for w in film.finished]
    assert lengths == [w.shape[2] for w in without.finished]
    assert not torch.equal(film.finished[-1], without.finished[-1]), "it must be felt"


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("ar_step", "block"), [(0, 1), (2, 2), (5, 5), (3, 4)])
def test_given_first_latents_stay_whatever_the_blocks(count, ar_step, block):
    """The reference shows a prefix smaller than a block as noise, and overwrites it."""
    start = picture(2, count)
    film = film_of(
        Conditions(start=start), num_frames=25, ar_step=ar_step, block_size=block, window=25,
        overlap=5, prefix_noise=0,
    )  # fmt: skip
    shown = make(film)
    for x, t in zip(shown.x, shown.t, strict=True):
        assert torch.equal(x[:, :, :count], start) and t[:count] == [0] * count
    assert torch.equal(film.finished[0][:, :, :count], start)
    assert film.finished[0].shape[2] == 7


@pytest.mark.parametrize("frames", [18, 25, 40, 59])
@pytest.mark.parametrize("block", [1, 2, 3, 4, 7])
def test_blocks_that_do_not_divide_lose_no_frame(frames, block):
    """The reference drops the last frames' schedule, or crashes."""
    numbers = {"num_frames": frames, "ar_step": 2, "block_size": block, "history": "latents"}
    film = Film(FilmPlan(**{**NUMBERS, **numbers}))
    make(film)
    own = [w[:, :, o.repeated :] for w, o in zip(film.finished, film.plan.windows(), strict=True)]
    whole = torch.cat(own, dim=2)
    assert whole.shape[2] == latent_length(frames)
    # Every latent has been moved away from its noise, by the same flow as all others.
    for place, window in zip(own, film.plan.windows(), strict=True):
        shape = (1, 16, window.length, 2, 2)
        start = SeededNoise(3).initial(window.index, shape)[:, :, window.repeated :]
        moved = (place - start).flatten(3).norm(dim=(1, 3))
        assert (moved > 0.1 * start.flatten(3).norm(dim=(1, 3))).all()


def test_film_with_everything_given_is_the_same_each_time_and_not_with_another_seed():
    given = Conditions(start=picture(1), pictures={3: picture(3)}, end=picture(4))
    finished = []
    for seed in (3, 3, 4):
        film = film_of(given, num_frames=30, history="latents", ar_step=1, block_size=2)
        make(film, seed)
        finished.append(torch.cat(film.finished, dim=2))
    assert torch.equal(finished[0], finished[1]) and not torch.equal(finished[0], finished[2])


def test_each_thing_given_changes_the_film():
    whole = {"start": picture(1), "pictures": {3: picture(3)}, "end": picture(4)}
    films = [whole, *({k: v for k, v in whole.items() if k != left} for left in whole)]
    made = []
    for given in films:
        film = film_of(Conditions(**given), num_frames=21, window=21)
        make(film)
        made.append(film.finished[0])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(made, 2))


SHOTS = (Shot(18), Shot(13, ease=8), Shot(14, cut=True))


@pytest.fixture(scope="module")
def vae():
    return models.small_vae()


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("shots", [(), SHOTS])
@torch.inference_mode()
def test_interrupted_anywhere_and_resumed_is_never_interrupted(history, shots, vae):
    given = Conditions(start=picture(1), pictures={2: picture(2), 6: picture(6)}, end=picture(4))
    numbers = {"num_frames": 45, "history": history, "shots": shots, "ar_step": 1, "steps": 2}

    def snapshots(film):
        """Copies of the film after each of its events, as a resumed run would find it."""
        run = generate(Watched(), film.plan, SeededNoise(3), new_history(film.plan, vae), film=film)
        for _ in run:
            yield copy.deepcopy(film)

    whole = film_of(given, **numbers)
    stops = list(snapshots(whole))
    rows = whole.plan.total_rows()
    assert len(stops) == rows + whole.plan.num_windows
    begun = [s for s in stops if not s.done]
    for stop in begun[::3]:
        make(stop, vae=vae)
        assert all(map(torch.equal, stop.finished, whole.finished))
    frames = torch.cat(list(film_frames(whole, vae)), dim=2)
    assert frames.shape[2] == 45 and frames.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("before", [(), (Shot(20),)], ids=["film", "cut"])
@torch.inference_mode()
def test_a_shot_shorter_than_the_overlap_is_continued_by_what_there_is(history, before, vae):
    """After a cut, too: nothing of the shots before it comes back."""
    shots = (*before, Shot(1, cut=True), Shot(4), Shot(4), Shot(25))
    frames = sum(shot.frames for shot in shots)
    film = Film(FilmPlan(**{**NUMBERS, "num_frames": frames, "history": history, "shots": shots}))
    make(film, vae=vae)
    short = [w for w in film.plan.windows() if w.shot >= len(before)]
    assert [w.repeated for w in short[:4]] == [0, 1, 2, 3]
    assert torch.cat(list(film_frames(film, vae)), dim=2).shape[2] == frames
    if history == "latents":  # all there is of the sequence, carried as it is
        for window in short[1:4]:
            last = film.finished[window.index - 1]
            assert torch.equal(film.finished[window.index][:, :, : last.shape[2]], last)


def test_a_cut_forgets_what_was_before():
    shots = (Shot(20), Shot(20, cut=True))
    numbers = {**NUMBERS, "num_frames": 40, "history": "latents"}
    film = Film(FilmPlan(**numbers, shots=shots))
    make(film)
    first = next(w for w in film.plan.windows() if w.shot == 1)
    assert first.prefix == 0 and first.start == latent_length(20)
    shape = (1, 16, first.length, 2, 2)
    alone = Film(FilmPlan(**{**numbers, "num_frames": 20}))

    class Shifted(SeededNoise):
        def initial(self, window, shape):
            return super().initial(window + first.index, shape)

        def prefix(self, window, row, shape):
            return super().prefix(window + first.index, row, shape)

    assert SeededNoise(3).initial(first.index, shape).shape == shape
    history = new_history(alone.plan, None)
    list(generate(Watched(), alone.plan, Shifted(3), history, film=alone))
    assert all(map(torch.equal, film.finished[first.index :], alone.finished))


def test_the_first_shot_is_the_film_without_the_others():
    numbers = {**NUMBERS, "history": "latents"}
    alone = Film(FilmPlan(**numbers, num_frames=29))
    shots = (Shot(29), Shot(20, ease=8), Shot(9, cut=True))
    film = Film(FilmPlan(**numbers, num_frames=58, shots=shots))
    make(alone)
    make(film)
    assert all(map(torch.equal, film.finished, alone.finished))
    assert len(film.finished) > len(alone.finished)


@torch.inference_mode()
def test_film_to_extend_is_continued_from_its_last_frames(vae):
    """The model sees the given latents noised; the windows after the first see their own film."""
    start = picture(2, 3)
    film = film_of(Conditions(start=start), num_frames=33, prefix_noise=20)
    shown = make(film, vae=vae)
    noise = (shown.x[0][:, :, :3] - 0.98 * start) / 0.02
    assert shown.t[0][:3] == [20, 20, 20] and 0.7 < noise.std() < 1.3
    assert torch.equal(film.finished[0][:, :, :3], start)
    frames = torch.cat(list(film_frames(film, vae)), dim=2)
    assert frames.shape[2] == 33
    given = vae.decode(denormalize_latents(start)).clamp(-1, 1)
    assert golden_data.relative_l2(frames[:, :, :9], given) < 1e-5


def test_events_of_a_film_with_pictures_count_all_rows():
    film = film_of(Conditions(pictures={3: picture(3)}, end=picture(4)), num_frames=17)
    events = list(generate(Watched(), film.plan, SeededNoise(3), film=film))
    rows = [e for e in events if isinstance(e, RowDone)]
    assert len(rows) == film.plan.total_rows() == 8 == rows[0].rows
    # The frame that is shown in a preview is one that moves.
    assert [e.frame for e in rows] == [0] * 4 + [3] * 4
    (done,) = (e for e in events if isinstance(e, WindowDone))
    assert done.latents.shape == (1, 16, 5, 2, 2)
