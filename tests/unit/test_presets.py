"""Presets: the authors' numbers, and a legal plan each."""

import pytest

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.presets import CAUSAL_PRESET, PRESETS, describe_preset, describe_sliding

# SkyworkAI/SkyReels-V2, README and `generate_video_df.py`.
PUBLISHED = {
    "1.3B 540P, text": (960, 544, 97, 17, 30, 8.0, 0, 1, 20),
    "1.3B 540P, image, asynchronous": (960, 544, 97, 17, 30, 5.0, 5, 5, 20),
    "14B 540P, text, asynchronous": (960, 544, 97, 17, 30, 8.0, 5, 5, 20),
    "14B 720P, text": (1280, 720, 121, 17, 30, 8.0, 0, 1, 20),
    "14B 720P, image": (1280, 720, 121, 17, 30, 5.0, 0, 1, 20),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_the_authors(name):
    assert tuple(PRESETS[name].numbers(upright=False).values()) == PUBLISHED[name]


def test_one_for_each_model_source_and_way():
    assert len(PRESETS) == 3 * 2 * 2 + 1


def test_the_causal_presets_steps_are_its_papers():
    """Self-Forcing: 1000, 750, 500 and 250 of 1000, by a shift of 5."""
    numbers = PRESETS[CAUSAL_PRESET].numbers(upright=False)
    timesteps = FilmPlan(num_frames=81, **numbers).schedule().timesteps
    assert timesteps.tolist() == pytest.approx([1000, 937.5, 833.3, 625], abs=1.5)
    assert describe_preset(CAUSAL_PRESET, numbers).endswith("For the sampler: solver lcm, cfg 1")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("upright", [False, True])
def test_each_makes_a_film(name, upright):
    plan = FilmPlan(num_frames=257, **PRESETS[name].numbers(upright))
    assert (plan.height > plan.width) == upright


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steps", [7, 30, 50])
def test_each_can_slide_by_the_least_change(name, steps):
    numbers = PRESETS[name].numbers(upright=False) | {"steps": steps}
    raised = PRESETS[name].sliding_ar_step(steps)
    FilmPlan(num_frames=257, **numbers | {"ar_step": raised}, sliding=True)
    if raised > numbers["ar_step"]:
        rule = rf"ar_step is {raised - 1}; it must be at least {raised} .*; nearest: {raised}$"
        with pytest.raises(ValueError, match=rule):
            FilmPlan(num_frames=257, **numbers | {"ar_step": raised - 1}, sliding=True)


def test_a_sliding_presets_other_ar_step_is_explained():
    assert describe_sliding("1.3B 540P, text, asynchronous", 6, 30) == (
        "Preset 1.3B 540P, text, asynchronous has ar_step 5, which is for films in windows. "
        "Sliding at 30 steps needs at least 6, so that each block is done before it leaves the "
        "view: ar_step is 6."
    )


def test_what_was_set_is_told_in_a_line():
    numbers = PRESETS["14B 720P, image"].numbers(upright=True)
    assert describe_preset("14B 720P, image", numbers) == (
        "Preset 14B 720P, image: 720 x 1280, window 121, overlap 17, steps 30, shift 5, ar_step 0, "
        "block_size 1, prefix_noise 20"
    )
