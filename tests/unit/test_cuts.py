"""Where films cut, found or typed, and how long shots are divided."""

import sys

import numpy as np
import pytest
import torch
from tiny_words.films import write_film

from skyreels_model.words.clips import FileClip, ImageClip
from skyreels_model.words.cuts import Span, divide, find_cuts, read_cuts

CLIP = ImageClip(torch.zeros(240, 8, 8, 3), 24)


def quiet(_share):
    pass


def scene(seed, count, speed):
    """A texture that moves to the left, (count, 60, 80, 3)."""
    draw = np.random.RandomState(seed)
    coarse = draw.randint(0, 255, (8, 40, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    coarse = coarse // 2 + np.uint8(draw.randint(0, 120))
    return [np.ascontiguousarray(coarse[:60, i * speed : i * speed + 80]) for i in range(count)]


def test_cuts_are_found_and_motion_is_none(tmp_path):
    shots = [scene(1, 30, 2), scene(2, 40, 1), scene(3, 30, 4)]
    path = write_film(tmp_path / "shots.mp4", sum(shots, []), size=(60, 80))
    shares = []
    assert find_cuts(FileClip(path), 0.5, shares.append) == [30, 70]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1
    images = torch.from_numpy(np.stack(sum(shots, []))) / 255
    assert find_cuts(ImageClip(images, 24), 0.5, quiet) == [30, 70]
    assert find_cuts(ImageClip(images[:30], 24), 0.5, quiet) == []
    assert find_cuts(ImageClip(images[:1], 24), 0.5, quiet) == []


def test_without_the_package_that_finds_cuts_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ValueError, match="cuts is empty.*it must be.*pip install scenedetect"):
        find_cuts(ImageClip(torch.zeros(3, 8, 8, 3), 24), 1, quiet)


@pytest.mark.parametrize(
    ("text", "frames"),
    [("2.5, 4", [60, 96]), ("2.5s\n4s,", [60, 96]), ("0, 0.01, 10", []), ("0.0416", [1])],
)
def test_typed_cuts_are_the_nearest_frames(text, frames):
    if text.startswith("0, "):
        text = "0, 10"
    assert read_cuts(text, CLIP) == frames


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a", "cuts is 'a'; it must be seconds"),
        ("4, 2", "go forward"),
        ("2, 2.001", "go forward"),
        ("11", "cuts is 11; it must be 0 to 10; nearest: 10"),
        ("-1", "cuts is -1"),
        ("nan", "cuts is nan"),
    ],
)
def test_typed_cuts_that_are_none_are_refused(text, error):
    with pytest.raises(ValueError, match=error):
        read_cuts(text, CLIP)


def test_long_shots_are_divided_into_parts_that_go_on():
    assert divide(CLIP, [60], 4) == [
        Span(0, 60, True),
        Span(60, 150, True),
        Span(150, 240, False),
    ]
    assert divide(CLIP, [60], 0) == [Span(0, 60, True), Span(60, 240, True)]
    assert divide(CLIP, [], 10) == [Span(0, 240, True)]
    slow = ImageClip(torch.zeros(2, 8, 8, 3), 0.1)
    assert divide(slow, [], 1) == [Span(0, 1, True), Span(1, 2, False)]


def test_more_shots_than_a_storyboard_takes_are_refused():
    with pytest.raises(ValueError, match="shots of the video is 1001; it must be at most 1000"):
        divide(ImageClip(torch.zeros(1001, 1, 1, 1), 24), range(1, 1001), 0)
