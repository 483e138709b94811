"""SkyReels-V2 Schedule in the host: its numbers, and those that a preset sets."""

import graphs
import pytest

from skyreels_model.plan.presets import PRESETS

NUMBERS = dict(
    width=96, height=64, frames=30, window=17, overlap=9, steps=3, shift=5.0, ar_step=0,
    block_size=1, prefix_noise=20, fps=24,
)  # fmt: skip


@pytest.fixture
def plan_film(look):
    """`plan_film(sigmas=..., **changes)` -> the plan, and the lines of its summary."""

    def run(sigmas=None, **changes):
        graph = {"1": graphs.node("SkyReelsV2Schedule", **NUMBERS | changes)}
        if sigmas is not None:
            text = ", ".join(map(str, sigmas))
            graph["2"] = graphs.node("ManualSigmas", sigmas=text)
            graph["1"]["inputs"]["sigmas"] = ["2", 0]
        plan, summary = look(graph, plan=["1", 0], summary=["1", 2])
        return plan, summary.splitlines()

    return run


def test_a_preset_sets_the_authors_numbers_and_says_so(plan_film):
    plan, summary = plan_film(preset="14B 720P, image, asynchronous")
    assert (plan.width, plan.height, plan.window, plan.overlap) == (1280, 720, 121, 17)
    assert (plan.steps, plan.shift, plan.ar_step, plan.block_size) == (30, 5.0, 5, 5)
    assert summary[0].startswith("Preset 14B 720P, image, asynchronous: 1280 x 720")


def test_a_preset_leaves_what_is_the_artists(plan_film):
    own = {"history": "latents", "anchor": 0.5, "fps": 16}
    plan, _ = plan_film(preset="1.3B 540P, text", **own)
    assert {name: getattr(plan, name) for name in own} == own and plan.num_frames == 30


def test_a_preset_keeps_an_upright_film_upright(plan_film):
    plan, _ = plan_film(preset="1.3B 540P, text", width=64, height=96)
    assert (plan.width, plan.height) == (544, 960)


@pytest.mark.parametrize(
    ("preset", "ar_step"),
    [
        ("1.3B 540P, text", 2),  # 30 steps, 25 blocks in its window
        ("1.3B 540P, text, asynchronous", 6),  # 5 blocks
        ("14B 720P, text, asynchronous", 5),  # 6 blocks, as the authors set it
    ],
)
def test_a_preset_raises_ar_step_as_far_as_sliding_needs(plan_film, caplog, preset, ar_step):
    plan, summary = plan_film(preset=preset, sliding=True)
    assert plan.sliding and plan.ar_step == ar_step and f"ar_step {ar_step}," in summary[0]
    own = PRESETS[preset].ar_step
    said = [line for line in summary if f"{preset} has ar_step {own}" in line]
    assert len(said) == (ar_step != own) and all(line in caplog.text for line in said)


def test_a_preset_of_a_sliding_film_counts_the_steps_of_given_sigmas(plan_film):
    sigmas = [1 - step / 40 for step in range(41)]
    plan, _ = plan_film(preset="1.3B 540P, text, asynchronous", sliding=True, sigmas=sigmas)
    assert plan.steps == 40 and plan.ar_step == 8


def test_a_typed_ar_step_that_cannot_slide_is_refused(run_prompt):
    numbers = NUMBERS | {"sliding": True, "steps": 30, "ar_step": 5}
    prompt = {"1": graphs.node("SkyReelsV2Schedule", **numbers)}
    prompt["2"] = graphs.node("PreviewAny", source=["1", 2])
    result = run_prompt(prompt)
    assert not result.success
    rule = "it must be at least 6 in a sliding film of 30 steps with 5 blocks in its window"
    assert f"ar_step is 5; {rule}; nearest: 6" in result.describe()


def test_without_a_preset_the_widgets_hold(plan_film):
    plan, summary = plan_film()
    same, same_summary = plan_film(preset="custom")
    assert plan == same and summary == same_summary
    assert (plan.width, plan.steps) == (96, 3)


def test_a_float_frame_rate_by_link_is_rounded_and_said(plan_film):
    plan, summary = plan_film(fps_float=23.976)
    assert plan.fps == 24 and summary[0] == "fps_float 23.976 is rounded to 24 fps"


def test_a_whole_float_frame_rate_needs_no_words(plan_film):
    plan, summary = plan_film(fps_float=16.0)
    assert plan.fps == 16 and "fps_float" not in summary[0]


@pytest.mark.parametrize("kind", ["SkyReelsV2Schedule", "SkyReelsV2ImageToVideo"])
def test_any_number_of_frames_can_be_typed(host, kind):
    import nodes

    schema = nodes.NODE_CLASS_MAPPINGS[kind].INPUT_TYPES()
    assert schema["required"]["frames"][1].get("step", 1) == 1


def test_the_summary_says_the_ram_of_the_frames(plan_film):
    _, summary = plan_film(frames=4_000_001, width=4096, height=4096)
    assert any("TOO LARGE" in line for line in summary)
