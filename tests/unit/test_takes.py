"""Retakes: one shot or window made again, what hangs on it with it, or only that stretch."""

import dataclasses

import pytest
import torch
from store_films import PLAN, Run, Stop, latents

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.retakes import Retake, parse_retakes, place_retakes
from skyreels_model.plan.shots import Shot
from skyreels_model.store.manifest import read_manifest
from skyreels_model.store.store import FilmStore
from skyreels_model.store.takes import describe_takes

# Windows by shot: 0 and 1, then 2 and 3 after a cut, then 4, which continues them.
SHOTS = dataclasses.replace(PLAN, num_frames=97, shots=(Shot(41), Shot(40, cut=True), Shot(16)))


def windows(film):
    return list(film.finished)


def same(film, other):
    """Which windows are equal."""
    return [torch.equal(one, two) for one, two in zip(windows(film), windows(other), strict=True)]


@pytest.fixture
def store(tmp_path):
    return FilmStore(tmp_path)


@pytest.fixture
def film(store):
    return Run(SHOTS).make(store)[0]


def told(store):
    return describe_takes(read_manifest(store.folder))


def test_the_film_of_these_tests_has_the_windows_that_they_speak_of():
    assert [window.shot for window in SHOTS.windows()] == [0, 0, 1, 1, 2]
    assert [SHOTS.continues(window) for window in SHOTS.windows()] == [
        False,
        True,
        False,
        True,
        True,
    ]


def test_a_retaken_shot_is_made_with_what_hangs_on_it_up_to_the_next_cut(film, store):
    again, session = Run(SHOTS, takes="shot 1: seed 7").make(store)
    assert same(again, film) == [False, False, True, True, True]
    assert (session.kept, session.made) == (3, 2)
    later, session = Run(SHOTS, takes="shot 2: seed 7").make(store)
    assert same(later, film) == [True, True, False, False, False]
    # As a film that had these seeds from the first.
    plain, _ = Run(SHOTS, takes="shot 2: seed 7").make()
    assert torch.equal(latents(later), latents(plain))


def test_a_retaken_window_is_made_with_those_after_it(film, store):
    again, session = Run(SHOTS, takes="window 4: seed 7").make(store)
    assert same(again, film) == [True, True, True, False, False] and session.made == 2


def test_only_that_stretch_ends_as_what_follows_begins(film, store):
    run = Run(SHOTS, takes="shot 2 only: seed 7")
    again, session = run.make(store)
    assert same(again, film) == [True, True, False, False, True]
    assert (session.kept, session.made) == (3, 2)
    kept = SHOTS.overlap_latents
    old, new = windows(film)[3], windows(again)[3]
    assert torch.equal(new[:, :, -kept:], old[:, :, -kept:]) and new.shape == old.shape
    begin = SHOTS.window_at(3).repeated
    assert torch.equal(new[:, :, :begin], windows(again)[2][:, :, -begin:])
    for place in range(begin, new.shape[2] - kept):
        assert not torch.allclose(new[:, :, place], old[:, :, place], atol=1e-2)


def test_the_stretch_is_made_in_view_of_what_follows_it(film, store):
    """Two films that differ only in what follows give two stretches."""
    one = windows(Run(SHOTS, takes="window 4 only: seed 7").make(store)[0])[3]
    other_store = FilmStore(store.folder / "other")
    other = Run(SHOTS, takes="window 4: seed 8")
    other.make(other_store)
    # The newest that is followed is the one to lead into.
    again = windows(Run(SHOTS, takes="window 4 only: seed 7").make(other_store)[0])[3]
    begin, kept = SHOTS.window_at(3).repeated, SHOTS.overlap_latents
    assert torch.equal(one[:, :, :begin], again[:, :, :begin])
    assert not torch.allclose(one[:, :, begin:-kept], again[:, :, begin:-kept], atol=1e-3)


def test_an_interrupted_stretch_goes_on_to_the_same_bits(film, store):
    takes = "window 4 only: seed 7"
    calls = []
    every = FilmStore(store.folder, every=0)
    for limit in (4, 1, 1000):
        run = Run(SHOTS, takes=takes, limit=limit)
        try:
            resumed = latents(run.make(every)[0])
        except Stop:
            assert any(store.folder.glob("row_00003_*"))
        calls.append(run.calls)
    for path in sorted(store.folder.glob("window_00003_*")):
        path.unlink()
    Run(SHOTS).make(store)
    whole = Run(SHOTS, takes=takes)
    assert torch.equal(resumed, latents(whole.make(store)[0]))
    assert sum(calls) == whole.calls and calls[:2] == [4, 1]


def test_takes_lie_beside_one_another_and_one_is_chosen(film, store):
    second = Run(SHOTS, takes="shot 2: seed 7").make(store)[0]
    third = Run(SHOTS, takes="shot 2 only: seed 8").make(store)[0]
    assert told(store) == ["shot 2 has takes 1 (seed 0), 2 (seed 7), 3 (seed 8, in this film)"]
    for number, wanted in ((1, film), (2, second)):
        run = Run(SHOTS, takes=f"shot 2: take {number}", limit=0)
        chosen, session = run.make(store)
        assert torch.equal(latents(chosen), latents(wanted)) and session.made == 0
    # What the third was made in is the second film, since that was the newest then.
    chosen, session = Run(SHOTS, takes="shot 2: take 3", limit=0).make(store)
    assert torch.equal(latents(chosen), latents(third)) and session.made == 0
    assert same(third, second)[4]


def test_a_take_with_another_prompt_comes_back_without_that_prompt(film, store):
    Run(SHOTS, prompt="a/b/a").make(store)
    chosen, session = Run(SHOTS, prompt="a/c/a", takes="shot 2: take 1", limit=0).make(store)
    assert torch.equal(latents(chosen), latents(film)) and session.made == 0


def test_a_shot_with_another_prompt_is_made_between_what_stands(film, store):
    again, session = Run(SHOTS, prompt="a/b/a", takes="shot 2 only").make(store)
    assert same(again, film) == [True, True, False, False, True] and session.made == 2


def test_what_follows_a_stretch_can_be_made_again_after_it(film, store):
    Run(SHOTS, takes="shot 2 only: seed 7").make(store)
    both, session = Run(SHOTS, takes="shot 2: take 2\nshot 3: seed 9").make(store)
    assert session.made == 1
    plain, session = Run(SHOTS, takes="shot 3: seed 9", limit=0).make(store)
    assert session.made == 0 and torch.equal(windows(plain)[4], windows(both)[4])


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[:-1], "it must be one that is on disk"),
        (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "window 4 that cannot be read"),
    ],
)
def test_a_damaged_take_is_told_and_not_made_with_another_prompt(film, store, damage, why):
    for path in sorted(store.folder.glob("window_00003_*")):
        path.write_bytes(damage(path.read_bytes()))
    run = Run(SHOTS, prompt="a/c/a", takes="shot 2: take 1", limit=0)
    with pytest.raises(ValueError, match=why):
        run.make(store)


def test_a_film_begun_afresh_keeps_the_takes_that_were_chosen(film, store):
    Run(SHOTS, prompt="a/b/a").make(store)
    run = Run(SHOTS, prompt="a/c/a", takes="shot 2: take 1")
    again, session = run.make(store, afresh=True)
    assert same(again, film)[2:4] == [True, True] and (session.kept, session.made) == (2, 3)


def test_a_sliding_film_is_retaken_by_sequences(store):
    plan = dataclasses.replace(SHOTS, sliding=True, ar_step=3)
    film = Run(plan).make(store)[0]
    again, session = Run(plan, takes="shot 2: seed 7").make(store)
    assert same(again, film) == [True, False] and session.made == 1
    for takes, why in {"window 1: seed 2": "name a shot", "shot 1 only": "one sequence"}.items():
        if takes.startswith("shot"):
            continue  # nothing follows but a cut
        with pytest.raises(ValueError, match=why):
            Run(plan, takes=takes).make(store)


LINES = {
    "shot 3: seed 7": Retake("shot", 3, seed=7),
    "Shot 3 only : Seed 7": Retake("shot", 3, only=True, seed=7),
    " window  12 :  take 2 ": Retake("window", 12, take=2),
    "shot 1 only": Retake("shot", 1, only=True),
}


@pytest.mark.parametrize("line", LINES)
def test_lines_are_read(line):
    assert parse_retakes(f"\n{line} /\n") == (LINES[line],)


@pytest.mark.parametrize(
    "text",
    [
        "shot 3",
        "shot: seed 7",
        "shot three: seed 7",
        "shot 3: seed -7",
        "shot 3: take 1 only",
        "shot 3 only: take 1",
        "shot 3: seed 18446744073709551616",
        "take 2",
        "shot 3: seed \u0663x",
        "x" * 200_000,
    ],
)
def test_what_is_no_retake_is_refused(text):
    with pytest.raises(ValueError, match="takes"):
        parse_retakes(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("shot 4: seed 1", "shot in takes is 4; it must be 1 to 3; nearest: 3"),
        ("window 0: seed 1", "window in takes is 0; it must be 1 to 5; nearest: 5"),
        ("shot 2: seed 1 / window 4: seed 2", "shot 2 and window 4, which share window 4"),
        ("shot 2: seed 1 / shot 2: take 2", "shot 2 twice"),
    ],
)
def test_what_the_film_does_not_have_is_refused(text, why):
    with pytest.raises(ValueError, match=why):
        place_retakes(SHOTS, parse_retakes(text))


@pytest.mark.parametrize(
    ("takes", "why"),
    [
        ("shot 2: take 9", "continues what is before it: 1"),
        ("window 1: take 2", "continues what is before it: 1"),
    ],
)
def test_a_take_that_is_not_there_is_refused_with_those_that_are(film, store, takes, why):
    with pytest.raises(ValueError, match=why):
        Run(SHOTS, takes=takes, limit=0).make(store)


def test_a_stretch_needs_what_follows_and_room(store):
    with pytest.raises(ValueError, match="make the film first"):
        Run(SHOTS, takes="shot 2 only: seed 7", limit=0).make(store)
    tight = FilmPlan(num_frames=57, width=16, height=16, window=25, overlap=17, steps=2)
    with pytest.raises(ValueError, match="no room"):
        Run(tight, takes="window 2 only: seed 7", limit=0).make(store)
