"""The one-sequence mode: the closed form is the reference's matrix, and the film has no seams."""

import copy
import dataclasses
import itertools

import pytest
import torch
from golden_data import models

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.prompts import find_prompts
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, SeededNoise, film_frames, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.noise import ShotNoise
from skyreels_model.schedule import flow_schedule, levels, timestep_matrix
from skyreels_model.schedule.staircase import Staircase

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
    for number, row in enumerate(staircase):
        start, stop = whole.windows[number]
        assert (row.start, row.stop) == (start, stop)
        assert torch.equal(row.index, whole.index[number, start:stop])
        assert torch.equal(levels(timesteps)[row.index], whole.timesteps[number, start:stop])
        assert torch.equal(row.update, whole.update[number, start:stop])
        assert not row.fresh.any()
        assert not whole.update[number, :start].any() and not whole.update[number, stop:].any()


def test_given_frames_longer_than_the_view_do_not_hide_what_moves():
    """Where the reference's view would stay on the given frames."""
    staircase = Staircase(frames=8, block_size=1, base=4, steps=4, lag=4, given=6)
    rows = list(staircase)
    assert [(rows[k].start, rows[k].stop) for k in (0, 3, 4, 7)] == [(3, 7), (3, 7), (4, 8), (4, 8)]
    assert [rows[k].index.tolist() for k in (0, 4)] == [[5, 5, 5, 1], [5, 5, 5, 1]]


# frames, block, base, steps, lag, given, pictures, end, within
STAIRS = list(
    itertools.product(
        (1, 6, 23), (1, 2, 3), (2, 5, 9), (4,), (1, 2, 4), (0, 1, 3),
        ((), (5,), (1, 2), (4, 9, 10, 11, 22)), ((0, 0), (1, 0), (2, 2)),
    )
)  # fmt: skip


@pytest.mark.slow
def test_every_row_moves_something_and_every_latent_takes_every_step_in_view():
    """With any pictures and end: each latent enters once, and leaves when it is done."""
    checked = 0
    for frames, block, base, steps, lag, given, pictures, (end, within) in STAIRS:
        pictures = tuple(p for p in pictures if max(given, 1) <= p < frames)
        if base * lag < steps or given + len(pictures) >= frames:
            continue
        checked += 1
        stairs = Staircase(frames, block, base, steps, lag, given, pictures, end, within)
        case = (stairs, pictures)
        taken, entered, left = {}, 0, 0
        rows = list(stairs)
        assert len(rows) == stairs.rows
        for row in rows:
            # Lists: an element of a tensor costs as much as all of it.
            update, fresh, index = row.update.tolist(), row.fresh.tolist(), row.index.tolist()
            assert any(update), case
            assert left <= row.start < row.stop and entered <= row.stop <= frames + end, case
            left, entered = row.start, row.stop
            assert not any(update[max(frames - row.start, 0) :]), case
            for place in itertools.compress(itertools.count(), update):
                taken.setdefault(row.start + place, []).append(index[place])
            for place in itertools.compress(itertools.count(), fresh):
                latent = row.start + place
                assert latent in pictures and taken[latent] == [1], case
                # Its neighbours are done, and shown.
                for beside in sorted({latent - 1, latent + 1} & set(range(frames)) - set(pictures)):
                    assert row.start <= beside < row.stop, case
                    assert index[beside - row.start] == steps + 1, case
        assert entered == frames + end, case
        assert stairs.widest == max(row.stop - row.start for row in rows), case
        made = set(range(given, frames))
        assert taken == {latent: list(range(1, steps + 1)) for latent in made}, case
        # A run of pictures, all of which wait for the same latents, is kept in view.
        run = 2 * len(pictures) * block
        assert stairs.widest <= base * block + end + block + run, case
    assert checked > 400


@pytest.mark.parametrize("given", [{}, {"given": 3, "pictures": (5, 8, 9), "end": 2, "within": 2}])
def test_rows_drawn_at_once_are_the_rows_one_by_one(given):
    stairs = Staircase(frames=14, block_size=2, base=5, steps=4, lag=2, **({"given": 0} | given))
    index, shown, moves = stairs.table(99, 12)
    rows = [row for row in stairs if not row.start or row.stop <= 12]
    assert len(index) == len(rows) > 4 and index.shape == shown.shape == moves.shape
    for place, row in enumerate(rows):
        seen = slice(row.start, row.stop)
        assert shown[place].nonzero().flatten().tolist() == list(range(row.start, row.stop))
        assert torch.equal(index[place, seen], row.index)
        assert (
            torch.equal(moves[place, seen], row.update) and moves[place].sum() == row.update.sum()
        )


def test_what_is_given_ahead_is_seen_before_the_staircase_gets_there():
    """Half of the room in view looks ahead: 4 blocks move, 4 are behind them, 4 before them."""
    numbers = {"frames": 40, "block_size": 1, "base": 12, "steps": 8, "lag": 2, "given": 0}
    for pictures, end, within, seen, ahead in (
        ((20,), 0, 0, 20, 4),
        ((), 2, 2, 40, 3),
        ((), 1, 0, 40, 5),
    ):
        rows = list(Staircase(**numbers, pictures=pictures, end=end, within=within))
        first = next(k for k, row in enumerate(rows) if row.stop > seen)
        moving = rows[first].update.nonzero()[:, 0] + rows[first].start
        assert seen - int(moving.max()) == ahead, (pictures, end, moving)
        assert rows[first].stop - rows[first].start <= 12 + end
        plain = list(Staircase(**numbers))
        same = [(row.start, row.stop) == (other.start, other.stop)
                for row, other in zip(rows[:first], plain, strict=False)]  # fmt: skip
        assert all(same)


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
    for row in SMALL.staircase(SMALL.window_at(0)):
        for place in row.update.nonzero()[:, 0].tolist():
            taken.setdefault(row.start + place, []).append(int(row.index[place]))
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
    *_, row = SMALL.staircase(SMALL.window_at(0))
    last = row.start
    assert torch.equal(short[:, :, :last], long[:, :, :last])


def test_given_start_stays_and_is_shown_noised():
    start = torch.ones(1, 16, 7, 2, 2)  # longer than the view
    conditions = Conditions(start=start)
    plan = SMALL.fit(conditions.counts)
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
    vae, film = models.small_vae(), make()[0]
    from skyreels_model.vae import denormalize_latents

    whole = vae.decode(denormalize_latents(film.finished[0])).clamp(-1, 1)
    pieces = torch.cat(list(film_frames(film, vae)), dim=2)
    assert pieces.shape[2] == 61 and torch.allclose(pieces, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"ar_step": 1}, ("ar_step is 1", "6 steps", "5 blocks", "at least 2")),
        ({"ar_step": 0}, ("ar_step is 0", "at least 2")),
        ({"block_size": 6}, ("block_size is 6; it must be at most 5", "nearest: 5")),
    ],
)
def test_what_cannot_slide_is_told(change, parts):
    with pytest.raises(ValueError) as error:
        dataclasses.replace(SMALL, **change)
    assert all(part in str(error.value) for part in parts), error.value


def test_hours_cost_nothing_up_front():
    plan = FilmPlan(num_frames=4_000_001, ar_step=5, sliding=True)
    assert plan.total_rows() == 30 + (plan.latent_frames - 1) * 5
    assert plan.staircase(plan.window_at(0)).row(5_000_000).index.shape == (25,)


def picture(seed, latents=1):
    """Latents (1, 16, n, 2, 2) that are told apart by their numbers."""
    return torch.randn(1, 16, latents, 2, 2, generator=torch.Generator().manual_seed(seed))


GIVEN = Conditions(start=picture(1), pictures={6: picture(2), 11: picture(3)}, end=picture(4))
LED = Conditions(pictures={5: picture(2)}, following=picture(5, 2))


def watched():
    """A velocity and what it was shown."""
    shown = []

    def velocity(x, t):
        shown.append((x.clone(), t[0].clone()))
        return field(x, t)

    return velocity, shown


@pytest.mark.parametrize("given", [GIVEN, LED], ids=["pictures", "film that follows"])
def test_pictures_and_what_follows_are_shown_clean_and_are_not_in_the_film(given):
    plan = dataclasses.replace(SMALL, window=41).fit(given.counts)
    velocity, shown = watched()
    film, events = make(plan, film=Film(plan, conditions=given), velocity=velocity)
    assert len(events) == plan.total_rows() + 1 and plan.num_windows == 1
    latents = film.finished[0]
    assert latents.shape[2] == plan.latent_frames and latents.isfinite().all()
    for latent, one in given.pictures.items():
        as_given = [
            torch.equal(x[:, :, k], one[:, :, 0]) for x, _ in shown for k in range(x.shape[2])
        ]
        assert any(as_given), "never shown"
        assert not torch.equal(latents[:, :, latent], one[:, :, 0]), "it must be made anew"
    x, t = shown[-1]
    if given.end is not None:
        assert torch.equal(x[:, :, -1:], given.end) and t[-1] == 0
        assert torch.equal(latents[:, :, :1], given.start)
    else:
        noise = (x[:, :, -2:] - 0.98 * given.following) / 0.02
        assert t[-2:].tolist() == [20, 20] and 0.6 < noise.std() < 1.4


def test_each_thing_given_is_felt():
    films = []
    for left in (None, "start", "pictures", "end"):
        given = dataclasses.replace(
            GIVEN, **({left: {} if left == "pictures" else None} if left else {})
        )
        plan = SMALL.fit(given.counts)
        films.append(make(plan, film=Film(plan, conditions=given))[0].finished[0])
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(films, 2))


def test_interrupted_with_pictures_and_cuts_and_resumed_equals_never_interrupted():
    shots = (Shot(29), Shot(12, ease=8), Shot(20, cut=True))
    plan = dataclasses.replace(SMALL, shots=shots).fit(GIVEN.counts)
    whole = Film(plan, conditions=GIVEN)
    total = len(list(generate(field, plan, SeededNoise(3), film=whole)))
    assert total == plan.total_rows() + 2 and len(whole.finished) == 2
    for stop in range(1, total, 7):
        film = Film(plan, conditions=GIVEN)
        run = generate(field, plan, SeededNoise(3), film=film)
        for _ in range(stop):
            next(run)
        resumed, _ = make(plan, film=copy.deepcopy(film))
        assert all(map(torch.equal, resumed.finished, whole.finished))


def test_a_cut_is_a_sequence_of_its_own_and_other_shots_are_not():
    shots = (Shot(29), Shot(12), Shot(20, cut=True))
    plan = dataclasses.replace(SMALL, shots=shots)
    assert [(w.start, w.length, w.shot) for w in plan.windows()] == [(0, 11, 0), (11, 6, 2)]
    film, _ = make(plan)
    alone, _ = make(dataclasses.replace(SMALL, num_frames=41))
    assert torch.equal(film.finished[0], alone.finished[0])
    vae = models.small_vae()
    assert torch.cat(list(film_frames(film, vae)), dim=2).shape[2] == 61


def test_each_latent_in_view_has_its_own_shots_prompt():
    shots = (Shot(9), Shot(8), Shot(8, ease=8), Shot(36))
    plan = dataclasses.replace(SMALL, shots=shots)
    window = plan.window_at(0)
    begins = [part.begin for part in plan.parts]
    assert begins == [0, 3, 5, 7]
    (first, none), (second, hard), (third, eased) = find_prompts(plan, window, 1, 6)
    assert (first, second, third) == (0, 1, 2) and none is None
    assert hard.tolist() == [0, 0, 1, 1, 1, 1] and eased.tolist() == [0, 0, 0, 0, 0.25, 0.75]
    # While a prompt fades in, the one before it is still there.
    assert [shot for shot, _ in find_prompts(plan, window, 5, 2)] == [1, 2]
    assert find_prompts(plan, window, 8, 4) == [(3, None)]
    assert [plan.shot_at(latent) for latent in (0, 2, 3, 6, 7, 40)] == [0, 0, 1, 2, 3, 3]


def test_each_shot_has_its_own_seed():
    shots = (Shot(29), Shot(32))
    plan = dataclasses.replace(SMALL, shots=shots)
    films = []
    for seeds in ((3, 3), (3, 4), (4, 3)):
        film = Film(plan)
        list(generate(field, plan, ShotNoise(plan, seeds), film=film))
        films.append(film.finished[0])
    assert torch.equal(films[0], make(plan)[0].finished[0])
    begin = plan.parts[1].begin
    # What the first shot's latents see of the second's comes late: they end almost alike.
    near = (films[0] - films[1]).flatten(3).norm(dim=(1, 3))[0] / films[0].flatten(3).norm(
        dim=(1, 3)
    )[0]
    assert near[: begin - 6].max() < 1e-6 < near[begin:].min()
    assert not torch.equal(films[0][:, :, 0], films[2][:, :, 0])


def test_what_the_view_has_left_is_all_that_is_kept_of_it():
    """Neither the view's memory on the CPU, nor the whole film on the device at its end."""
    film = Film(SMALL)
    run = generate(field, SMALL, SeededNoise(3), film=film)
    for _ in range(SMALL.total_rows()):
        next(run)
    assert len(film.passed) == SMALL.latent_frames - 5
    for part in film.passed:
        assert part.untyped_storage().nbytes() == part.numel() * 4
