"""Keys of windows and digests of values: equal where all is equal that decides, and only there."""

import dataclasses

import pytest
import torch

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.store.digests import RUN, RUNS, digest, sample
from skyreels_model.store.keys import window_keys

PLAN = FilmPlan(
    num_frames=57, width=16, height=16, window=25, overlap=9, steps=6, ar_step=2, history="latents"
)
SHOTS = (Shot(25, False, 0), Shot(25, False, 0), Shot(25, True, 0))


def test_what_is_changed_is_made_anew_up_to_the_next_cut():
    plan = dataclasses.replace(PLAN, num_frames=75, shots=SHOTS)

    def keys(seeds):
        return window_keys(plan, Conditions(), "unipc", lambda window: {"seed": seeds[window.shot]})

    shots = [window.shot for window in plan.windows()]
    before, after = keys([0, 0, 0]), keys([0, 1, 0])
    same = [a.key == b.key for a, b in zip(before, after, strict=True)]
    assert same == [shot != 1 for shot in shots]
    changed = keys([1, 0, 0])
    same = [a.key == b.key for a, b in zip(before, changed, strict=True)]
    assert same == [shot == 2 for shot in shots]
    first = shots.index(1)
    assert after[first].differences(before[first].parts) == ["seed"]


def test_a_window_has_one_key_wherever_in_the_film_it_lies():
    """A film made backwards begins at its end; after a cut nothing before it counts."""

    def keys(plan, given):
        return [key.key for key in window_keys(plan, given, "unipc", lambda window: {})]

    clip = Conditions(following=torch.randn(1, 16, 2, 2, 2))
    plans = [dataclasses.replace(PLAN, num_frames=frames).fit(clip.counts) for frames in (32, 48)]
    short, long = (keys(plan, clip) for plan in plans)
    assert all(plan.backwards for plan in plans) and long[: len(short)] == short
    cut = [
        dataclasses.replace(
            PLAN, num_frames=frames + 25, shots=(Shot(frames, False, 0), Shot(25, True, 0))
        )
        for frames in (21, 25)
    ]
    first, second = (keys(plan, Conditions()) for plan in cut)
    assert [a == b for a, b in zip(first, second, strict=True)] == [False, True]


def test_a_picture_after_a_film_is_no_clip_after_it():
    """The same latents stay clean as the one, and are noised as the other."""
    latent = torch.randn(1, 16, 1, 2, 2)
    ends = Conditions(start=latent, end=latent), Conditions(start=latent, following=latent)
    plans = [
        dataclasses.replace(PLAN, num_frames=frames).fit(given.counts)
        for frames, given in zip((25, 22), ends, strict=True)
    ]
    windows = [list(plan.windows()) for plan in plans]
    assert windows[0] == windows[1]
    one, other = (
        window_keys(plan, given, "unipc", lambda window: {})
        for plan, given in zip(plans, ends, strict=True)
    )
    assert one[0].key != other[0].key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0), (1, True), ("1", 1), (None, "None"), ([1, 2], [[1], 2]), ({"a": 1}, {"a": 2}),
        (torch.zeros(2, 3), torch.zeros(3, 2)), (torch.zeros(2), torch.zeros(2).half()),
        (0.1, 0.1 + 1e-16 + 1e-17 * 3), (Shot(5, True, 0), Shot(5, False, 0)), ([], {}), ("", b""),
    ],
)  # fmt: skip
def test_what_differs_has_another_digest(one, other):
    assert digest(one) != digest(other) and digest(one) == digest(one)


def test_a_digest_is_the_same_everywhere():
    value = {"b": [1, 2.5, None], "a": torch.arange(3)}
    assert digest(value) == digest(dict(reversed(value.items())))
    assert digest(value) == "b952a22b3037f7304b4a1f04b334223d"
    with pytest.raises(TypeError, match="function"):
        digest({"f": dataclasses.replace})


def test_weights_are_told_apart_by_a_few_of_their_numbers():
    weight = torch.randn(40, 50)
    assert len(sample(weight)) == RUNS * RUN and len(sample(weight[0])) == 50
    assert not torch.equal(sample(weight), sample(weight + 1e-3))
    assert torch.equal(sample(weight.T.contiguous().T), sample(weight))
    narrow = weight.to(torch.float8_e4m3fn)
    assert torch.equal(sample(narrow).float(), sample(narrow.float()))
