"""Films of the shipped toy weights show what they were asked for, in every mode.

All scenes are held out: none was trained on. The marks lie below what `python toy/evaluate.py`
measured over several seeds (toy/weights/README.md), so that chance does not fail them, and above
what faults leave (`test_faults_are_seen`).
"""

import contextlib
import dataclasses
import functools

import pytest
import torch

from skyreels_model.rollout import history
from skyreels_model.rollout import window as rollout
from skyreels_model.schedule.matrix import WindowRows
from toy.continuity import seam_jumps
from toy.evaluate import Summary, takes
from toy.instruments import find_figures
from toy.toyset import GUIDANCE, ToySet, toy_plan
from toy.world import BACKGROUNDS, COLOURS, DIRECTIONS, HELD_OUT, SHAPES, Scene

# Least shares of right names, and of given pictures reached: one of eight films may fail. Measured
# over 96 to 288 windows a mode: 0.99 to 1.00, shapes 0.97 to 1.00; pictures 0.93 to 1.00.
FEW = HELD_OUT[::2]
# Two judged windows a film: half the films are as many windows.
TWO_WINDOWS = ("long-pixels", "long-latents", "sliding", "sliding-pictures", "video-to-video")
TWO_WINDOWS += ("causal",)  # and more
FEWEST = FEW[::2]
LEAST = dict.fromkeys(("background", "colour", "shape", "direction"), 0.85)
PICTURES = {**LEAST, "pictures": 0.8}
MARKS = {
    "text-sync": LEAST,
    "text-16fps": LEAST,
    "start-async": PICTURES,
    "extend": PICTURES,
    "end": PICTURES,
    "key": PICTURES,
    "long-pixels": LEAST,
    "long-latents": LEAST,
    "sliding": LEAST,
    "sliding-pictures": PICTURES,
    "prepend": PICTURES,
    "between": PICTURES,
    # The source's motion, within 2 px: measured 0.79, by chance about 0.01.
    "video-to-video": {**LEAST, "pictures": 0.5},
    "t2v": LEAST,
    "i2v": PICTURES,
    "causal": LEAST,
}
# Of all 32 looks, where three may fail.
ALL_LOOKS = dict.fromkeys(LEAST, 0.9)
# The gap of the path at a seam, px, that three in four keep to: measured 0.24 to 0.35, inside 0.2.
SEAM = 0.5


@pytest.fixture(scope="module")
def toys():
    """On one thread: beside another busy process, more make films this small 20 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {kind: ToySet.load(kind) for kind in ("DF", "T2V", "I2V", "causal")}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def films(toys):
    """`films(mode)`: a film of each of a few scenes, made once, however many tests look at them."""

    @functools.cache
    def make(mode):
        return takes(toys, mode, FEWEST if mode in TWO_WINDOWS else FEW, 1)

    return make


@pytest.fixture(scope="module")
def looks(toys):
    """What films of all 32 looks show, the backgrounds in turn."""
    names = [(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS]
    grounds = list(BACKGROUNDS)
    scenes = tuple(
        Scene(colour, shape, grounds[index % len(grounds)], direction)
        for index, (colour, shape, direction) in enumerate(names)
    )
    return Summary.of(takes(toys, "text-async", scenes, 1))


def failures(summary: Summary, marks: dict[str, float]) -> list[str]:
    """The marks that a summary does not reach."""
    shares = {**summary.right, "pictures": summary.pictures}
    missed = [name for name, least in marks.items() if not shares[name] >= least]
    return [f"{name} {shares[name]:.2f} < {marks[name]}" for name in missed]


@pytest.mark.parametrize("mode", MARKS)
def test_films_show_what_was_asked(films, mode):
    summary = Summary.of(films(mode))
    assert not failures(summary, MARKS[mode]), summary
    assert summary.speed == pytest.approx(1, abs=0.15)


def test_every_colour_shape_and_direction_is_told_from_the_others(looks):
    assert not failures(looks, ALL_LOOKS), looks


def test_guidance_strengthens_the_prompt(toys, looks, monkeypatch):
    """Towards the opposite of the prompt, and off, the films obey it less."""
    summaries = {GUIDANCE: looks}
    for guidance in (-1.0, 0.0):
        with guided(monkeypatch, guidance):
            summaries[guidance] = Summary.of(takes(toys, "text-async", FEWEST, 1))
    right = {g: sum(s.right.values()) / len(s.right) for g, s in summaries.items()}
    assert right[-1.0] < right[0.0] < right[2.0] and right[0.0] < 0.6 < 0.85 < right[2.0], right


@contextlib.contextmanager
def guided(monkeypatch, guidance):
    """ToySet with another guidance."""
    velocity = ToySet.velocity
    with monkeypatch.context() as patch:
        patch.setattr(
            ToySet,
            "velocity",
            lambda self, prompt, fps, _guidance, **given: velocity(
                self, prompt, fps, guidance, **given
            ),
        )
        yield


def seam_gaps(films) -> list[float]:
    """The gaps of the figures' paths at the seams of films of three windows, px."""
    borders = [start for start, _ in films[0].spans]  # of the continued windows
    seams = [seam for film in films for seam in seam_jumps(find_figures(film.frames), borders)]
    return sorted(seam.at_border.position for seam in seams)


@pytest.mark.parametrize("mode", ["long-pixels", "long-latents", "long-picture"])
def test_motion_goes_on_over_a_seam(toys, films, mode):
    gaps = seam_gaps(films(mode) if mode in MARKS else takes(toys, mode, FEWEST, 1))
    assert gaps[int(0.75 * len(gaps))] < SEAM, gaps


def the_frame_before(monkeypatch):
    """Tell the model of each frame the timestep of the one before it.

    (One row late instead is not seen in films: the steps are too small. Golden data sees it.)
    """
    part = WindowRows.part

    def shifted(self, begin, end):
        right = part(self, begin, end)
        return dataclasses.replace(right, timesteps=right.timesteps.roll(1, dims=1))

    monkeypatch.setattr(WindowRows, "part", shifted)


def swapped_guidance(monkeypatch):
    """Guide away from the prompt."""
    encode = ToySet.encode
    monkeypatch.setattr(ToySet, "encode", lambda self, prompts: encode(self, prompts).flip(0))


FAULTS = {"timesteps of the frame before": the_frame_before, "guidance swapped": swapped_guidance}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_seen(toys, monkeypatch, fault):
    """The same films as above, with a subtle fault: the marks tell."""
    FAULTS[fault](monkeypatch)
    summary = Summary.of(takes(toys, "text-async", FEWEST, 1))
    assert failures(summary, LEAST), summary


def test_a_seam_one_frame_off_is_seen(toys, monkeypatch):
    extend_tail = history._extend_tail

    def early(tail, pieces, count, anchor):
        tail = extend_tail(tail, pieces, count + 1, anchor)
        return dataclasses.replace(tail, frames=tail.frames[:, :, :count])

    monkeypatch.setattr(history, "_extend_tail", early)
    gaps = seam_gaps(takes(toys, "long-pixels", FEWEST, 1))
    assert gaps[int(0.75 * len(gaps))] > SEAM, gaps


def noise_in_the_prefix(toys, monkeypatch) -> tuple[float, float]:
    """Of the continued windows of a film: the prefix's noise as the model is told, and as it is."""
    velocity, seen = ToySet.velocity, []

    def watched(self, *args, **given):
        inner = velocity(self, *args, **given)

        def call(x, t):
            seen.append((x[0, :, :5], t[0, :5]))
            return inner(x, t)

        return call

    monkeypatch.setattr(ToySet, "velocity", watched)
    plan = toy_plan(2)
    toys["DF"].film(HELD_OUT[0].caption, plan, 3)
    rows = plan.matrix(plan.window_at(1)).rows
    shown = torch.stack([x for x, _ in seen[-rows:]])  # (R, C, 5, h, w)
    # The prefix is the same in all rows; its noise is drawn anew.
    level = float(shown.std(dim=0).mean())
    return float(seen[-1][1].float().mean() / 1000), level


def test_continued_frames_are_as_noisy_as_the_model_is_told(toys, monkeypatch):
    told, found = noise_in_the_prefix(toys, monkeypatch)
    assert told == pytest.approx(0.02) and found == pytest.approx(told, rel=0.1)


def test_a_prefix_without_its_noise_is_seen(toys, monkeypatch):
    monkeypatch.setattr(rollout, "noise_given", lambda film, *_: film.latents)
    told, found = noise_in_the_prefix(toys, monkeypatch)
    assert not found == pytest.approx(told, rel=0.1)
