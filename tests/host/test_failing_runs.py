"""Runs that are cancelled, fail or run out of memory: all is freed, and the next run is as ever."""

import gc
import itertools
import re
import sys

import graphs
import numpy as np
import pytest
import torch

from devtools import inprocess
from devtools.live_bytes import LiveBytes


def film():
    """Two windows, the second continuing the first through the VAE; the probe sees the frames."""
    prompt = graphs.film(frames=13, window=9, overlap=5, steps=2)
    prompt["9"] = graphs.node("SkyReelsV2TestProbe", value=["7", 0], name="frames")
    return prompt


def failing(kind, at):
    """The film by a model that fails from its forward of this number on."""
    prompt = film()
    prompt["10"] = graphs.node("SkyReelsV2TestFailure", model=["1", 0], error=kind, call=at)
    prompt["6"]["inputs"]["model"] = ["10", 0]
    return prompt


@pytest.fixture(scope="module")
def measured(look):
    """`measured(prompt)` -> result, frames as bytes, peak of live bytes, and bytes still alive."""
    seen = next(module.SEEN for name, module in sys.modules.items() if name.endswith("/host/probe"))

    def run(prompt, on_event=lambda event, data: None):
        inprocess.unload_models()
        seen.clear()  # what a test without this has left
        gc.collect()
        with LiveBytes() as live:
            result = inprocess.execute(prompt, on_event)
            frames = seen.pop("frames", None)
            frames = None if frames is None else frames.numpy().tobytes()
            seen.clear()  # of a graph whose probe came before what failed
            gc.collect()
        return result, frames, live.peak, live.now

    look(graphs.film(), schedule=["5", 0])  # loads the probe
    return run


@pytest.fixture(scope="module")
def first(measured):
    """The frames and the peak of a run before any failed."""
    result, frames, peak, alive = measured(film())
    assert result.success and frames and alive == 0
    return frames, peak


@pytest.fixture
def failing_push(monkeypatch):
    """`failing_push("Decode", number)`: the VAE's stream fails in its push of this number."""

    def fail(kind, at):
        name = next(
            n for n in sys.modules if "/" in n and n.endswith(".skyreels_model.vae.network")
        )
        stream, numbers = getattr(sys.modules[name], f"{kind}Stream"), itertools.count(1)
        original = stream.push

        def push(self, given):
            if next(numbers) == at:
                raise RuntimeError("as the test wants it")
            return original(self, given)

        monkeypatch.setattr(stream, "push", push)

    return fail


def sane():
    """The host's list of loaded models has no dead entry, and all of them can be unloaded."""
    import comfy.model_management as management

    management.cleanup_models_gc()
    assert all(entry.model is not None for entry in management.current_loaded_models)
    assert len({id(entry.model.model) for entry in management.current_loaded_models}) == len(
        management.current_loaded_models
    )
    inprocess.unload_models()
    return not management.current_loaded_models


def cancel_in(row):
    """An event handler that cancels when the sampler's row of this number is done."""
    import nodes

    def on_event(event, data):
        if event != "progress_state":
            return
        sampler = data["nodes"].get("6", {})
        if sampler.get("value") == row and sampler.get("state") == "running":
            nodes.interrupt_processing()

    return on_event


# Two windows of three latents, two of which the second is given; two forwards each.
FAILURES = {
    "error": 4,
    "out of memory": 4,
    "cancelled": 3,
    "Decode": 3,  # within the seam
    "Encode": 2,
    "Decode the film": 5,
}


@pytest.mark.parametrize("kind", FAILURES)
def test_all_is_freed_and_the_next_run_is_the_first(
    first, measured, failing_push, monkeypatch, kind
):
    prompt, on_event, at = film(), lambda event, data: None, FAILURES[kind]
    if kind in ("error", "out of memory"):
        prompt = failing(kind, at)
    elif kind == "cancelled":
        on_event = cancel_in(at)
    else:
        failing_push(kind.split()[0], at)
    result, frames, _, alive = measured(prompt, on_event)
    assert not result.success and frames is None
    assert result.interrupted == (kind == "cancelled"), result.describe()
    if kind == "out of memory":
        assert "sampling: there is not enough memory; prompts were computed" in result.describe()
    assert alive == 0 and sane()
    monkeypatch.undo()
    result, frames, peak, alive = measured(film())
    assert result.success and (frames, peak) == first and alive == 0


def test_without_room_for_two_prompts_they_are_computed_one_by_one(first, measured, caplog):
    result, frames, _, alive = measured(failing("no room for two", 2))
    assert result.success and alive == 0 and sane()
    # One by one sums are rounded in another order.
    found, expected = (np.frombuffer(bytes, np.float32) for bytes in (frames, first[0]))
    assert np.abs(found - expected).max() < 1e-3
    assert caplog.text.count("they are computed one by one") == 1


# Where each stage beside the sampler works, and what is told when it lacks memory.
STAGES = {
    "VAE decode of 32 x 32 px": ("vae.layers", "Decoder.forward", r"tiles were tried"),
    "VAE encode of 32 x 32 px": ("vae.layers", "Encoder.forward", r"tiles were tried"),
    "text encoder": ("text_encoder.network", "UMT5Encoder.forward", r"Use a file of it in fp8"),
    "image encoder": ("image_encoder.network", "CLIPVision.forward", r"leave clip_vision"),
    "writing the video": ("video.pixels", "to_levels", r"Choose codec h264"),
}


@pytest.fixture
def without_room(monkeypatch):
    """`without_room(stage, times)`: this stage lacks memory for so many times."""

    def fail(stage, times):
        module, name, _ = STAGES[stage]
        name, place = name.split(".")[::-1], module
        (full,) = (n for n in sys.modules if "/" in n and n.endswith(f".skyreels_model.{place}"))
        owner = getattr(sys.modules[full], name[1]) if len(name) > 1 else sys.modules[full]
        original, numbers = getattr(owner, name[0]), itertools.count(1)

        def work(*given, **options):
            if next(numbers) <= times:
                raise torch.OutOfMemoryError("as the test wants it")
            return original(*given, **options)

        monkeypatch.setattr(owner, name[0], work)

    return fail


def encoded():
    """Both encoders at work, and a file; the probe sees the image as the model will."""
    prompt = graphs.film(frames=5, window=5, overlap=1, steps=1)
    for name in ("5", "6", "7"):
        del prompt[name]
    prompt["11"] = graphs.node(
        "SkyReelsV2ImageEncoderLoader",
        image_encoder_name="toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    )
    prompt["12"] = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=0x804020)
    links = {"positive": ["4", 0], "negative": ["4", 1], "vae": ["3", 0], "clip_vision": ["11", 0]}
    size = {"width": 32, "height": 32, "frames": 5, "fit": "crop", "start_image": ["12", 0]}
    prompt["13"] = graphs.node("SkyReelsV2ImageToVideo", **links, **size)
    coding = {"codec": "h264", "quality": 80, "bit_depth": "8", "fps": 0.0}
    prompt["14"] = graphs.node(
        "SkyReelsV2FilmToVideo", samples=["13", 2], vae=["3", 0], filename_prefix="full", **coding
    )
    prompt["9"] = graphs.node("SkyReelsV2TestProbe", value=["13", 0], name="conditions")
    return prompt


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_memory_says_what_to_change_and_frees_all(measured, without_room, stage):
    without_room(stage, times=99)
    result, _, _, alive = measured(encoded())
    assert not result.success
    assert re.search(
        f"{stage}: there is not enough memory; .*{STAGES[stage][2]}", result.describe()
    )
    assert result.describe().count("not enough memory") == 1
    assert alive == 0 and sane()


@pytest.mark.parametrize("stage", ["text encoder", "image encoder"])
def test_an_encoder_without_memory_tries_once_more_alone(look, without_room, caplog, stage):
    (expected,) = look(encoded(), conditions=["13", 0])
    inprocess.unload_models()
    without_room(stage, times=1)
    prompt = encoded()
    prompt["4"]["inputs"]["negative"] += " again"  # else the host has it all already
    (found,) = look(prompt, conditions=["13", 0])
    assert caplog.text.count(f"{stage}: out of memory; trying once more without any other") == 1
    (text, options), (text_before, options_before) = found[0], expected[0]
    assert torch.equal(text, text_before)
    features, before = (o["clip_vision_output"] for o in (options, options_before))
    assert torch.equal(features.penultimate_hidden_states, before.penultimate_hidden_states)


def test_nothing_waits_for_the_garbage_collector(look):
    """A run's tensors hang in no cycle: on a full card they must go at once, not minutes later."""
    prompt = film()
    prompt["10"] = graphs.node("SkyReelsV2TestFailure", model=["1", 0], error="error", call=4)
    links = {"model": ["1", 0], "broken": ["10", 0], "vae": ["3", 0], "positive": ["4", 0],
             "negative": ["4", 1], "schedule": ["5", 0]}  # fmt: skip
    model, broken, *rest = look(prompt, **links)
    import nodes

    names = ("vae", "positive", "negative", "schedule")
    given = dict(zip(names, rest, strict=True), seed=1, cfg=4.0, solver="unipc")
    sampler = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2Sampler"]
    decode = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2Decode"]
    kept = []
    gc.collect()
    gc.disable()
    try:
        for one in (model, broken, model):
            with torch.inference_mode(), LiveBytes() as live:
                try:
                    (latent, *_) = sampler.execute(one, **given).result
                    assert decode.execute(latent, given["vae"]).result[0].shape[0] == 13
                    del latent
                except RuntimeError as error:
                    assert one is broken and "as the test wants it" in str(error)
            kept.append(live.now)
    finally:
        gc.enable()
    # The loaded model's table of noise levels is all that may stay.
    assert len(set(kept)) == 1 and kept[0] <= 4 * 1000
