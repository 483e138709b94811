"""Solvers, given sigmas and guidance curves in the running host."""

import graphs
import pytest
import torch

pytestmark = pytest.mark.usefixtures("kept_loaders")

ORDINARY = ["unipc", "euler", "unipc_as_shipped", "dpmpp_2m"]
# Where films are compared by how far they are apart, of the size that the model was trained for.
TRAINED = {"width": 32, "height": 32}


def film(sampler=(), **schedule):
    """A film of the least size, if no other is given."""
    prompt = graphs.film(**{"width": 16, "height": 16, **schedule})
    prompt["6"]["inputs"].update(sampler)
    return prompt


def final(look, prompt):
    return look(prompt, latent=["6", 0])[0]["samples"]


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture
def forwards(look, host, monkeypatch):
    """`forwards(prompt)` -> for each call of the model, how many prompts it was asked for."""
    import comfy.model_base

    original = comfy.model_base.BaseModel.apply_model
    called = []

    def apply_model(self, x, *args, **kwargs):
        called.append(len(x))
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(comfy.model_base.BaseModel, "apply_model", apply_model)

    def count(prompt):
        called.clear()
        final(look, prompt)
        return list(called)

    return count


@pytest.mark.parametrize("ar_step", [0, 5])
def test_every_ordinary_solver_goes_to_the_same_film(look, ar_step):
    """One ODE: with many steps they end together, with few they do not."""
    numbers = {"ar_step": ar_step, **TRAINED}
    many = {s: final(look, film({"solver": s}, steps=30, **numbers)) for s in ORDINARY}
    few = {s: final(look, film({"solver": s}, steps=6, **numbers)) for s in ORDINARY}
    for solver in ORDINARY[1:]:
        apart = relative(many[solver], many["unipc"])
        assert 0 < apart < 0.6 * relative(few[solver], few["unipc"]), solver


def test_lcm_makes_a_long_film_that_does_not_depend_on_its_length(look):
    settings = {"solver": "lcm", "cfg": 1.0}
    short = final(look, film(settings, steps=4, frames=33))
    assert short.isfinite().all() and short.std() > 0.1
    assert torch.equal(final(look, film(settings, steps=4, frames=33)), short)
    assert torch.equal(final(look, film(settings, steps=4, frames=49))[:, :, :9], short)
    assert not torch.equal(final(look, film({**settings, "seed": 2}, steps=4, frames=33)), short)


def manual(text):
    return graphs.node("ManualSigmas", sigmas=text)


@pytest.mark.parametrize("solver", [*ORDINARY, "lcm"])
def test_sigmas_of_a_core_node_make_the_film(look, solver):
    """From sigma 1; they replace steps and shift."""
    prompt = film({"solver": solver}, steps=7, shift=2.0, frames=33)
    prompt["20"] = manual("1, 0.9, 0.75, 0.4, 0")
    prompt["5"]["inputs"]["sigmas"] = ["20", 0]
    links = {"latent": ["6", 0], "plan": ["5", 0], "summary": ["5", 2]}
    latent, plan, summary = look(prompt, **links)
    assert plan.steps == 4 and plan.total_rows() == 4 * plan.num_windows
    assert "4 steps, sigmas as given" in summary
    assert latent["samples"].isfinite().all() and latent["samples"].std() > 0.1
    prompt["5"]["inputs"].update(steps=30, shift=8.0)
    assert torch.equal(final(look, prompt), latent["samples"])


def test_basic_schedulers_sigmas_make_nearly_the_schedules_own_film(look):
    """Both are shifted flow schedules, one begins at 1 and one a little below."""
    prompt = film(steps=30, shift=2.0, **TRAINED)
    prompt["20"] = graphs.node("ModelSamplingSD3", model=["1", 0], shift=5.0)
    prompt["21"] = graphs.node(
        "BasicScheduler", model=["20", 0], scheduler="simple", steps=6, denoise=1.0
    )
    prompt["5"]["inputs"]["sigmas"] = ["21", 0]
    links = {"latent": ["6", 0], "plan": ["5", 0], "sigmas": ["21", 0]}
    latent, plan, sigmas = look(prompt, **links)
    assert sigmas[0] == 1 and torch.equal(plan.schedule().sigmas, sigmas)
    own, other = (final(look, film(steps=6, shift=shift, **TRAINED)) for shift in (5.0, 2.0))
    assert 5 * relative(latent["samples"], own) < relative(other, own)


def test_bad_sigmas_and_curves_are_told_before_the_first_row(run_prompt):
    def refusal(prompt):
        rows = []
        prompt["9"] = graphs.node("PreviewImage", images=["7", 0])

        def on_event(event, data):
            if event == "progress_state" and "6" in data["nodes"]:
                rows.append(data["nodes"]["6"]["value"])

        result = run_prompt(prompt, on_event)
        assert not result.success and not any(rows)
        return result.describe()

    for text, says in (("1, 0.5", "it must end at 0"), ("", "sigmas has 0 noise levels")):
        prompt = film()
        prompt["20"] = manual(text)
        prompt["5"]["inputs"]["sigmas"] = ["20", 0]
        assert says in refusal(prompt)
    assert "points must go from noise" in refusal(film({"cfg_curve": "0: 1, 1: 6"}))


def test_a_level_curve_is_the_number_bit_for_bit(look):
    number = final(look, film({"cfg": 4.0}, ar_step=2, frames=33))
    curve = {"cfg": 9.0, "cfg_curve": "1: 4, 0.3: 4, 0: 4"}
    assert torch.equal(final(look, film(curve, ar_step=2, frames=33)), number)
    assert not torch.equal(final(look, film({**curve, "cfg_curve": ""}, frames=33)), number)


def test_a_curve_of_1_leaves_out_the_negative_prompts_forwards(forwards):
    sigmas = "1, 0.9, 0.7, 0.5, 0.3, 0.1, 0"

    def run(curve):
        prompt = film({"cfg": 4.0, "cfg_curve": curve})
        prompt["20"] = manual(sigmas)
        prompt["5"]["inputs"]["sigmas"] = ["20", 0]
        return forwards(prompt)

    assert sum(run("")) == 12
    assert sum(run("1: 6, 0.5: 6, 0.5: 1")) == 3 * 2 + 3
    assert run("1") == [1] * 6
    assert sum(run("1: 1, 0.5: 1, 0.4: 6")) == 4 + 2 * 2


def test_a_curve_is_what_the_hosts_guidance_and_its_patches_get(look):
    """The scale that the host's own guidance works with, row by row."""
    import comfy.samplers

    seen = []
    original = comfy.samplers.cfg_function

    def cfg_function(model, positive, negative, scale, x, timestep, **kwargs):
        seen.append((float(timestep[0]), scale))
        return original(model, positive, negative, scale, x, timestep, **kwargs)

    prompt = film({"cfg_curve": "1: 6, 0.5: 4, 0: 2; 3"}, frames=33)
    prompt["20"] = manual("1, 0.75, 0.25, 0")
    prompt["5"]["inputs"]["sigmas"] = ["20", 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comfy.samplers, "cfg_function", cfg_function)
        final(look, prompt)
    first = [(1.0, 6.0), (0.75, 5.0), (0.25, 3.0)]
    assert len(seen) == 9 and seen[:3] == first
    assert {scale for _, scale in seen[3:]} == {3.0}


def test_each_window_has_its_curve(look):
    first, second = (film({"cfg_curve": c}, frames=25) for c in ("5", "1: 2, 0: 3"))
    both = film({"cfg_curve": "5; 1: 2, 0: 3"}, frames=25)
    (first, second, both) = (final(look, p) for p in (first, second, both))
    assert both.shape[2] == 7 and torch.equal(both[:, :, :5], first[:, :, :5])
    assert not torch.equal(both[:, :, 5:], first[:, :, 5:])
    assert not torch.equal(both[:, :, :5], second[:, :, :5])
