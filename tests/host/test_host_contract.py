"""What the host asks of our MODEL, CLIP and VAE beyond their sockets."""

import sys

import graphs
import torch


def test_loads_where_the_host_gives_layers_their_weights_late(look, monkeypatch):
    """With dynamic VRAM, the host's default on NVIDIA, a layer has no weight until it is loaded."""
    import comfy.memory_management

    before, frames = look(graphs.film(), latent=["6", 0], frames=["7", 0])
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    after, late = look(graphs.film(), latent=["6", 0], frames=["7", 0])
    assert torch.equal(before["samples"], after["samples"]) and torch.equal(frames, late)


def test_the_host_can_build_every_patcher_again_without_dynamic_vram(look):
    """As it does for compiling, hooks and other devices where dynamic VRAM is on."""
    import comfy.model_patcher

    model, clip, vae = look(graphs.film(), model=["1", 0], clip=["2", 0], vae=["3", 0])
    for patcher in (model, clip.patcher, vae.patcher):
        make, arguments = patcher.cached_patcher_init[:2]
        with torch.inference_mode():
            again = make(*arguments, disable_dynamic=True)
        assert type(again) is comfy.model_patcher.ModelPatcher
        before, after = patcher.model.state_dict(), again.model.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_percents_of_sampling_go_by_the_schedules_shift(look, monkeypatch):
    """A condition for the first half is used while the noise level is above that of 50 %."""
    import comfy.samplers

    seen = []
    original = comfy.samplers.sampling_function

    def record(model, x, timestep, uncond, cond, *args, **kwargs):
        active = [c for c in cond if float(timestep[0]) >= c.get("timestep_end", 0.0)]
        seen.append((float(timestep[0]), len(active)))
        return original(model, x, timestep, uncond, cond, *args, **kwargs)

    monkeypatch.setattr(comfy.samplers, "sampling_function", record)
    prompt = graphs.film(steps=10, shift=3.0)
    ranges = {"20": (0.0, 0.5), "21": (0.5, 1.0)}
    for name, (start, end) in ranges.items():
        prompt[name] = graphs.node(
            "ConditioningSetTimestepRange", conditioning=["4", 0], start=start, end=end
        )
    prompt["22"] = graphs.node(
        "ConditioningCombine", conditioning_1=["20", 0], conditioning_2=["21", 0]
    )
    prompt["6"]["inputs"]["positive"] = ["22", 0]
    look(prompt, latent=["6", 0])
    # Shift 3 turns the middle into noise level 3*0.5 / (1 + 2*0.5) = 0.75.
    assert [count for sigma, count in seen] == [2 if sigma >= 0.75 else 1 for sigma, _ in seen]
    assert len({count for _, count in seen}) == 2


def test_a_condition_cut_in_time_is_refused(look, run_prompt):
    prompt = graphs.film()
    prompt["20"] = graphs.node(
        "ConditioningSetAreaPercentageVideo",
        conditioning=["4", 0],
        width=1.0,
        height=1.0,
        temporal=0.5,
        x=0.0,
        y=0.0,
        z=0.0,
        strength=1.0,
    )
    prompt["6"]["inputs"]["positive"] = ["20", 0]
    prompt["8"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success and "has an area in time" in result.describe()


def test_decoding_goes_on_in_tiles_when_memory_runs_out(look, monkeypatch):
    import comfy.model_management

    name = next(n for n in sys.modules if "/" in n and n.endswith(".skyreels_model.vae.network"))
    stream, pushed = sys.modules[name].DecodeStream, []
    original = stream.push

    def push(self, latents):
        pushed.append(1)
        if len(pushed) == 4:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return original(self, latents)

    prompt = graphs.film(steps=20, ar_step=5)
    (expected,) = look(prompt, frames=["7", 0])
    monkeypatch.setattr(stream, "push", push)
    (frames,) = look(prompt, frames=["7", 0])
    assert len(pushed) > 4 and torch.allclose(frames, expected, atol=1e-4)
