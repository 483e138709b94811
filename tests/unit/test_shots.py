"""Lengths of a film's parts, and the windows and rows that follow from them."""

import itertools
from collections import Counter

import pytest
import torch

from skyreels_model.grid import frame_length, frames_of_seconds, latent_length
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.prompts import find_prompts
from skyreels_model.plan.shots import Part, Shot, lay_out
from skyreels_model.plan.summary import describe_plan
from skyreels_model.plan.windows import picture_frame, picture_latent
from skyreels_model.schedule import flow_schedule, window_matrix

SIZE = {"width": 16, "height": 16}


def test_latents_hold_one_frame_and_then_four_each():
    assert [latent_length(n) for n in (1, 2, 5, 6, 9, 97, 98, 101)] == [1, 2, 2, 3, 3, 25, 26, 26]
    assert [frame_length(n) for n in (0, 1, 2, 25)] == [0, 1, 5, 97]
    for frames in range(1, 200):
        assert 0 <= frame_length(latent_length(frames)) - frames < 4


def test_shots_lie_one_behind_the_other_and_cuts_begin_a_sequence():
    parts = lay_out([Shot(10), Shot(7), Shot(6, cut=True), Shot(4)])
    # 10 frames take 4 latents, 17 take 5; 6 take 3, 10 take 4.
    assert parts == [
        Part(0, 4, True, 17),
        Part(4, 1, False, 17),
        Part(5, 3, True, 10),
        Part(8, 1, False, 10),
    ]


@pytest.mark.parametrize("lengths", list(itertools.product((4, 5, 6, 7, 24), repeat=3)))
@pytest.mark.parametrize("cut", [False, True])
def test_borders_are_at_most_three_frames_late(lengths, cut):
    shots = [Shot(lengths[0]), Shot(lengths[1]), Shot(lengths[2], cut=cut)]
    parts = lay_out(shots)
    assert [p.begin for p in parts[1:]] == [p.begin + p.latents for p in parts[:-1]]
    late = frame_length(parts[0].latents) - lengths[0]
    assert 0 <= late < 4
    last = parts[1] if cut else parts[2]
    whole = sum(lengths[:2]) if cut else sum(lengths)
    assert {p.sequence_frames for p in parts if p.begin <= last.begin} == {whole}
    assert last.begin + last.latents == latent_length(whole)


@pytest.mark.parametrize(
    ("shots", "parts"),
    [
        (lambda: Shot(0), ("frames of a shot is 0", "nearest: 1")),
        (lambda: Shot(-3), ("frames of a shot is -3", "nearest: 1")),
        (lambda: Shot(9, ease=-1), ("ease is -1", "nearest: 0")),
        (lambda: lay_out([Shot(6), Shot(2)]), ("shot 2", "2 frames", "at least 4")),
        (lambda: FilmPlan(num_frames=8, shots=(Shot(6), Shot(2))), ("shot 2", "at least 4")),
        (lambda: FilmPlan(num_frames=9, shots=(Shot(4), Shot(4))), ("frames is 9", "nearest: 8")),
    ],
)
def test_shots_that_cannot_be(shots, parts):
    with pytest.raises(ValueError) as error:
        shots()
    assert all(part in str(error.value) for part in parts), error.value


def check_windows(plan):
    """The windows make each latent of the film once, in order, and repeat what was there before."""
    full, overlap = latent_length(plan.window), latent_length(plan.overlap)
    made = 0
    for index, window in enumerate(plan.windows()):
        part = plan.parts[window.shot]
        assert window.index == index and 0 < window.length <= full
        assert window.start + window.repeated == made, "a gap, or a latent made twice"
        assert window.start >= 0 and window.repeated <= overlap
        assert part.begin <= made and window.start + window.length <= part.begin + part.latents
        assert bool(window.repeated) == (not part.fresh or made > part.begin)
        made = window.start + window.length
    assert made == plan.latent_frames
    # Windows with as much given in the same places have the same matrix.
    alike = Counter((w.length, w.prefix, w.pictures, w.end) for w in plan.windows())
    one = {(w.length, w.prefix, w.pictures, w.end): w for w in plan.windows()}
    assert plan.total_rows() == sum(n * plan.matrix(one[key]).rows for key, n in alike.items())


def check_matrix(matrix, steps, given, pictures=()):
    """Every row moves something, each frame does all its steps once and in order, given ones none.

    Pictures are shown clean until all else is done, and then do theirs.
    """
    # As numpy's arrays: single elements of tensors take many times as long.
    levels, indices, updates, fresh = (
        part.numpy() for part in (matrix.timesteps, matrix.index, matrix.update, matrix.fresh)
    )
    assert updates.any(axis=1).all()
    done = steps + 1
    renewed = matrix.rows - steps if pictures else matrix.rows
    for frame in range(indices.shape[1]):
        index, update = indices[:, frame], updates[:, frame]
        if frame in given:
            assert not update.any() and not levels[:, frame].any()
            assert not fresh[:, frame].any()
            continue
        assert index[update].tolist() == list(range(1, done))
        if frame in pictures:
            assert not levels[:renewed, frame].any() and not update[:renewed].any()
            assert fresh[:, frame].nonzero()[0].tolist() == [renewed]
        else:
            # What does not move is not yet begun, or done, or waits within its steps.
            assert (index[1:] >= index[:-1]).all() and index[-1] >= steps
            assert not update[renewed:].any()
            assert fresh[:, frame].nonzero()[0].tolist() == [0]


WINDOWS = [(5, 1), (17, 9), (17, 13), (33, 17)]
RHYTHMS = list(itertools.product((0, 1, 3), (1, 2, 3, 7)))


@pytest.mark.slow
@pytest.mark.parametrize(("window", "overlap"), WINDOWS)
def test_every_length_has_its_windows_and_every_row_moves_something(window, overlap):
    for frames in range(1, 61):
        for ar_step, block in RHYTHMS:
            plan = FilmPlan(
                num_frames=frames, window=window, overlap=overlap, steps=3, ar_step=ar_step,
                block_size=block, **SIZE,
            )  # fmt: skip
            assert plan.latent_frames == latent_length(frames)
            check_windows(plan)
            for one in {(w.length, w.prefix): w for w in plan.windows()}.values():
                check_matrix(plan.matrix(one), 3, range(one.prefix))


SHOTS = [
    (Shot(12), Shot(9), Shot(30)),
    (Shot(5), Shot(20)),  # the first is shorter than the overlap
    (Shot(1), Shot(4), Shot(4), Shot(4), Shot(40)),
    (Shot(50), Shot(7, cut=True), Shot(4), Shot(60)),
    (Shot(2, cut=True), Shot(1, cut=True), Shot(1, cut=True)),
]


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize(("window", "overlap"), WINDOWS)
def test_shots_have_windows_of_their_own(shots, window, overlap):
    frames = sum(shot.frames for shot in shots)
    plan = FilmPlan(
        num_frames=frames, window=window, overlap=overlap, steps=2, shots=shots, ar_step=1, **SIZE
    )
    check_windows(plan)
    assert {w.shot for w in plan.windows()} == set(range(len(shots)))
    for one in plan.windows():
        check_matrix(plan.matrix(one), 2, range(one.prefix))


@pytest.mark.parametrize(("ar_step", "block"), RHYTHMS)
@pytest.mark.parametrize("pictures", [(), (3,), (4, 8), (8,)])
@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("given", [0, 1, 3])
def test_given_frames_pictures_and_an_end_picture(ar_step, block, pictures, end, given):
    timesteps = flow_schedule(4, 5).timesteps
    matrix = window_matrix(9, timesteps, ar_step, block, given, pictures, end)
    assert matrix.update.shape[1] == 9 + end
    check_matrix(matrix, 4, [*range(given), *range(9, 9 + end)], pictures)


def test_a_window_with_nothing_but_pictures_left_makes_these():
    matrix = window_matrix(3, flow_schedule(4, 5).timesteps, 0, 1, 1, (1, 2))
    assert matrix.rows == 4
    check_matrix(matrix, 4, [0], (1, 2))


def test_key_frames_stand_at_the_nearest_latent():
    for frame in range(1, 40):
        nearest = min(range(1, 20), key=lambda k: (abs(picture_frame(k) - frame), -k))
        assert picture_latent(frame) == nearest
        assert abs(picture_frame(nearest) - frame) <= 2
    assert picture_latent(0) == picture_frame(0) == 0


@pytest.mark.parametrize("frames", range(5, 23))
def test_key_frames_at_the_end_are_inside_the_film(frames):
    plan = FilmPlan(num_frames=frames, **SIZE)
    for frame in range(1, frames):
        latent = plan.latent_at(frame)
        assert latent < plan.latent_frames and abs(picture_frame(latent) - frame) <= 3
        FilmPlan(num_frames=frames, pictures=(latent,), **SIZE)


def test_key_frames_count_in_frames_of_the_film_over_cuts():
    shots = (Shot(10), Shot(9, cut=True))
    plan = FilmPlan(num_frames=19, shots=shots, **SIZE)
    # 10 frames in 4 latents of which the last is cut short, then 9 in 3.
    assert [plan.latent_at(f) for f in (1, 5, 9, 10, 11, 15, 18)] == [1, 2, 3, 4, 5, 6, 6]
    for frame in (-1, 19):
        with pytest.raises(ValueError, match=f"at frame {frame}; the film has frames 0 to 18"):
            plan.latent_at(frame)


def test_a_key_frame_belongs_to_the_one_window_that_makes_it():
    numbers = {"num_frames": 61, "window": 17, "overlap": 9, "steps": 2, **SIZE}
    for latent in range(1, 16):
        plan = FilmPlan(pictures=(latent,), **numbers)
        places = [w.start + p for w in plan.windows() for p in w.pictures]
        assert places == [latent]
        check_windows(plan)
    plan = FilmPlan(end=True, **numbers)
    assert [w.end for w in plan.windows()] == [0] * (plan.num_windows - 1) + [1]


def test_fade_is_in_the_first_frames_of_a_shot_that_continues():
    shots = (Shot(20), Shot(40, ease=16), Shot(20, cut=True, ease=16))
    plan = FilmPlan(num_frames=80, window=33, overlap=17, shots=shots, **SIZE)
    first = next(w for w in plan.windows() if w.shot == 1)
    (before, none), (own, weights) = find_prompts(plan, first, 0, first.length)
    assert (before, own) == (0, 1) and none is None and weights.shape == (first.length,)
    # Latents 0 to 3 of the shot are its first 16 frames: taken at the middle of their four.
    expected = [0.0] * first.repeated + [0.125, 0.375, 0.625, 0.875]
    assert torch.equal(weights, torch.tensor(expected))
    others = [w for w in plan.windows() if w.index != first.index]
    assert {w.shot for w in others} == {0, 1, 2}
    assert all(find_prompts(plan, w, 0, w.length) == [(w.shot, None)] for w in others)
    alone = FilmPlan(num_frames=80)
    assert find_prompts(alone, alone.window_at(0), 0, 21) == [(0, None)]


CONTRADICTIONS = [
    ({"num_frames": 17, "start": 5}, ("17 frames are given", "has 17", "at least 4")),
    ({"num_frames": 40, "window": 9, "overlap": 5, "start": 3}, ("9 frames", "first window has 9")),
    ({"num_frames": 17, "pictures": (5,)}, ("key frame is at frame 17", "1 to 16")),
    ({"num_frames": 17, "pictures": (0,)}, ("key frame is at frame 0", "1 to 16")),
    ({"num_frames": 33, "start": 3, "pictures": (2,)}, ("at frame 5", "9 to 32", "given")),
]


@pytest.mark.parametrize(("change", "parts"), CONTRADICTIONS)
def test_what_is_given_must_be_inside_and_leave_something_to_make(change, parts):
    with pytest.raises(ValueError) as error:
        FilmPlan(**change, **SIZE)
    assert all(part in str(error.value) for part in parts), error.value


def test_windows_behind_the_last_are_no_windows():
    with pytest.raises(IndexError, match="window 1 of 1"):
        FilmPlan(num_frames=17, **SIZE).window_at(1)


def test_summary_tells_the_exact_numbers():
    plan = FilmPlan(num_frames=58, window=33, overlap=17, history="latents", fps=16, **SIZE)
    text = describe_plan(plan)
    assert "58 frames = 3.62 s at 16 fps" in text and "3 windows of up to" in text
    assert "through latents" in text and f"{plan.total_rows()} model calls" in text
    assert frames_of_seconds(3.62, 16) == 58 and frames_of_seconds(0.01, 16) == 1
