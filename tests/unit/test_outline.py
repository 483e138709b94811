"""A plan as data for the page: times in frames, a bounded number of entries, cells in bytes."""

import base64
import json

import pytest

from skyreels_model.plan.choose import choose_plan
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.given import Given
from skyreels_model.plan.outline import MAX_SPANS, ROOM, outline_plan
from skyreels_model.plan.presets import PRESETS
from skyreels_model.plan.shots import Shot
from skyreels_model.plan.summary import describe_seconds, describe_shortly
from skyreels_model.rules import read_refusal

SMALL = {"width": 16, "height": 16, "window": 17, "overlap": 9, "steps": 4}


def cells(outline):
    matrix = outline["matrix"]
    data = base64.b64decode(matrix["cells"])
    columns = matrix["columns"]
    return [list(data[row * columns : (row + 1) * columns]) for row in range(matrix["rows"])]


def test_windows_tile_the_film_and_share_the_overlap():
    outline = outline_plan(FilmPlan(num_frames=33, **SMALL))
    assert outline["spans"] == [[0, 0, 17, 17], [8, 17, 25, 25], [16, 25, 33, 33]]
    assert (outline["windows"], outline["calls"]) == (3, 12)


def test_of_many_windows_some_stand_for_the_whole_film():
    outline = outline_plan(FilmPlan(num_frames=14409, **SMALL))
    spans, every = outline["spans"], outline["every"]
    assert (outline["windows"], every, len(spans)) == (1800, 3, 600)
    assert spans[0] == [0, 0, 17, 17] and spans[1] == [24, 33, 41, 41]
    assert spans[-1][3] > 14400 - 3 * 8


def test_windows_that_lead_into_a_clip_show_its_beginning():
    outline = outline_plan(FilmPlan(num_frames=16, **SMALL).fit(Given(following_frames=99)))
    assert outline["spans"] == [[8, 8, 16, 24], [0, 0, 8, 16]]
    assert outline["given"]["following"] == 8


def test_given_frames_and_shots_are_in_frames_of_the_film():
    shots = (Shot(20), Shot(20, cut=True), Shot(8, ease=4))
    plan = FilmPlan(num_frames=48, shots=shots, **SMALL)
    given = Given(start=1, key_frames=(10, 30), end=True)
    outline = outline_plan(plan.fit(given))
    assert outline["shots"] == [[0, 20, False, 0], [20, 40, True, 0], [40, 48, False, 4]]
    assert outline["given"] == {"start": 1, "keys": [9, 29], "end": True, "following": 0}


def test_a_cell_says_what_it_is():
    outline = outline_plan(FilmPlan(num_frames=25, prefix_noise=0, ar_step=2, **SMALL))
    rows = cells(outline)
    # Noise that moves, noise that waits, no cell: the first window has 5 of the film's 7 latents.
    assert rows[0] == [63 + 64, 63, 63, 63, 63, 0, 0]
    assert rows[-1] == [0, 0, 1, 1, 1, 2, rows[-1][6]] and 2 < rows[-1][6] - 64 < 63
    assert outline["matrix"]["windows"][0] == (0, 12, 0, 5)


@pytest.mark.parametrize(
    "numbers",
    [
        {"num_frames": 4_000_001},
        {"num_frames": 4_000_001, "window": 1001, "steps": 1000, "ar_step": 1000},
        {"num_frames": 4_000_001, "sliding": True, "ar_step": 2},
        {"num_frames": 500 * 97, "shots": (Shot(97, cut=True),) * 500},
    ],
)
def test_any_legal_plan_has_a_small_outline(numbers):
    outline = outline_plan(FilmPlan(**numbers))
    assert len(outline["spans"]) <= MAX_SPANS and len(outline["shots"]) <= MAX_SPANS
    assert outline["matrix"]["rows"] <= ROOM.rows
    assert len(json.dumps(outline)) < 150_000


def test_what_a_person_chooses_becomes_a_plan():
    name = "14B 720P, text, asynchronous"
    choice = choose_plan(1, seconds=2, preset=name, fps_float=23.976, width=16, height=16)
    assert choice.plan.num_frames == 48 and choice.plan.width == PRESETS[name].width
    assert choice.said[1] == "fps_float 23.976 is rounded to 24 fps" and not choice.warnings


def test_a_refusal_carries_the_nearest_number():
    with pytest.raises(ValueError) as refused:
        choose_plan(33, overlap=31, **{k: v for k, v in SMALL.items() if k != "overlap"})
    assert read_refusal(refused.value) == ("overlap", 13)
    assert str(refused.value).endswith("; nearest: 13")


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.0417, "4.042 s"), (80, "1 min 20 s"), (3605, "1 h 0 min 5 s")]
)
def test_lengths_for_people(seconds, text):
    assert describe_seconds(seconds) == text


def test_a_plan_in_a_line():
    plan = FilmPlan(num_frames=33, **SMALL)
    assert describe_shortly(plan) == "1.375 s, 33 frames, 3 windows, 12 model calls"
