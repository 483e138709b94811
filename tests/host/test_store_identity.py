"""What decides a film: nothing that does is missed, and nothing that a run leaves behind is in."""

import functools
import sys
import types

import graphs
import numpy as np
import pytest
import torch
from graphs import TOY, node
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("kept_loaders")

SMALL = {"frames": 17, "window": 17, "overlap": 9, "steps": 3}
HOST_NODES = {
    "RescaleCFG": ({"multiplier": 0.7}, {"multiplier": 0.8}),
    "APG": ({"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.5}, {"eta": 0.9}),
    "ModelComputeDtype": ({"dtype": "fp32"}, {"dtype": "fp16"}),
    "LoraLoaderBypassModelOnly": (
        {"lora_name": "small.safetensors", "strength_model": 1.0},
        {"strength_model": 0.5},
    ),
    "WanContextWindowsManual": (
        {
            "context_length": 13, "context_overlap": 5, "context_schedule": "standard_static",
            "context_stride": 1, "closed_loop": False, "fuse_method": "pyramid",
            "freenoise": False, "retain_first_frame": False, "split_conds_to_windows": False,
        },
        {"context_overlap": 9},
    ),
    "SkipLayerGuidanceDiT": (
        {
            "double_layers": "0", "single_layers": "", "scale": 3.0, "start_percent": 0.01,
            "end_percent": 0.15, "rescaling_scale": 0.0,
        },
        {"double_layers": "1"},
    ),
}  # fmt: skip


def imported(module):
    """A module of the pack as the host has loaded it."""
    return next(sys.modules[n] for n in sys.modules if "/" in n and n.endswith(f".film.{module}"))


@pytest.fixture
def identify(look):
    """`identify(kind, **inputs)`: the digest of the toy model after such a node."""

    def run(kind, **inputs):
        (model,) = look({"1": graphs.film()["1"], "9": node(kind, model=["1", 0], **inputs)},
                        model=["9", 0])  # fmt: skip
        return imported("identity").identify_model(model)

    return run


@pytest.mark.parametrize("kind", HOST_NODES)
def test_a_run_leaves_a_model_what_it_was(look, identify, small_lora, kind):
    """Queued again, with the models that the host has kept, a film is the same film."""
    given, other = HOST_NODES[kind]
    prompt = graphs.film(**SMALL)
    prompt["9"] = node(kind, model=["1", 0], **given)
    prompt["6"]["inputs"]["model"] = ["9", 0]
    _, model = look(prompt, latent=["6", 0], model=["9", 0])
    fresh = identify(kind, **given)
    assert imported("identity").identify_model(model) == fresh
    assert identify(kind, **given | other) != fresh


def test_what_is_loaded_is_told_apart(look, models_folder, without_fps):
    """Other weights of the same shapes, number formats, attention, and who computes it."""
    state = load_file(models_folder / "diffusion_models" / without_fps)
    state["blocks.0.ffn.0.bias"] = state["blocks.0.ffn.0.bias"] + 0.01
    save_file(state, models_folder / "diffusion_models" / "altered.safetensors")
    ours = {"weight_dtype": "fp32", "attention": "pytorch", "variant": "auto"}
    made = [
        node("SkyReelsV2ModelLoader", **{"model_name": without_fps, **ours, **other})
        for other in (
            {}, {"attention": "split"}, {"weight_dtype": "bf16"}, {"weight_dtype": "fp8_e4m3fn"},
            {"model_name": "altered.safetensors"}, {"model_name": TOY["model"]},
        )
    ]  # fmt: skip
    made.append(node("UNETLoader", unet_name=without_fps, weight_dtype="default"))
    models = [look({"1": loader}, model=["1", 0])[0] for loader in made]
    found = [imported("identity").identify_model(model) for model in models]
    assert len(set(found)) == len(made)


def hooked(strength, second):
    """A prompt with a LoRA whose strength goes from one to another."""
    prompt = graphs.film(**SMALL)
    prompt |= {
        "50": node("CreateHookLoraModelOnly", lora_name="small.safetensors", strength_model=1.0),
        "51": node("CreateHookKeyframe", strength_mult=strength, start_percent=0.0),
        "52": node("CreateHookKeyframe", strength_mult=second, start_percent=0.5,
                   prev_hook_kf=["51", 0]),
        "53": node("SetHookKeyframes", hooks=["50", 0], hook_kf=["52", 0]),
        "54": node("ConditioningSetProperties", cond_NEW=["4", 0], strength=1.0,
                   set_cond_area="default", hooks=["53", 0]),
    }  # fmt: skip
    prompt["6"]["inputs"]["positive"] = ["54", 0]
    return prompt


def test_strengths_of_a_lora_in_a_prompt(look, small_lora):
    """Where a run is in them is no part of it."""
    _, text = look(hooked(1.0, 0.5), latent=["6", 0], text=["54", 0])
    after = imported("identity").identify_prompt(text)
    found = []
    for strengths in ((1.0, 0.5), (1.0, 0.6)):
        graph = hooked(*strengths)
        del graph["6"], graph["7"]
        found.append(imported("identity").identify_prompt(look(graph, text=["54", 0])[0]))
    assert found[0] == after != found[1]


class Holder:
    def __init__(self, held):
        self.held = held


def enclosing(held):
    return lambda: held


def counting(first):
    count = first

    def step():
        nonlocal count
        count += 1
        return count

    return step


def nested(value, depth=12):
    return value if not depth else Holder([nested(value, depth - 1)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (enclosing(1), enclosing(2)),
        (enclosing(np.array([1, 2])), enclosing(np.array([1, 3]))),
        (enclosing(np.float32(1)), enclosing(np.float32(2))),
        (enclosing(nested({"a": 1})), enclosing(nested({"a": 2}))),
        (lambda x: x * 2, lambda x: x * 3),
        (Holder({1: 2}), Holder({"1": 2})),
        (Holder({1, 2}), Holder({1, 3})),
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=2)),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
        (enclosing(Holder(1).__init__), enclosing(Holder(2).__init__)),
    ],
)
def test_what_functions_and_objects_hold_is_seen(host, one, other):
    describe = imported("describe").Describer().describe
    again = imported("describe").Describer().describe
    assert describe(one) != describe(other) and describe(one) == again(one)


def test_a_set_of_functions_is_the_same_in_every_order(host):
    """Their places in memory differ from run to run."""
    describe = imported("describe").Describer
    ones = [{enclosing(n) for n in range(20)} for _ in range(2)]
    assert describe().describe(ones[0]) == describe().describe(ones[1])


def test_what_a_function_counts_is_no_setting(host):
    describer, step = imported("describe").Describer, counting(0)
    before, kept = describer().describe(step), describer(state=True).describe(step)
    step()
    assert describer().describe(step) == before
    assert describer(state=True).describe(step) != kept


def test_functions_that_enclose_their_model_or_a_module(look):
    (model,) = look({"1": graphs.film()["1"]}, model=["1", 0])
    plain = imported("identity").identify_model(model)
    found = []
    for _ in range(2):
        own = model.clone()
        own.set_model_unet_function_wrapper(enclosing([own, model, torch, model.model]))
        found.append(imported("identity").identify_model(own))
    assert found[0] == found[1] != plain


def test_a_packs_folder_is_no_part_of_a_name(host):
    name_of, kind = imported("describe").name_of, types.new_class("Kind")
    names = set()
    for folder in ("/home/a/ComfyUI/custom_nodes/", "C:\\ComfyUI\\custom_nodes\\", ""):
        kind.__module__ = f"{folder}pack.nodes"
        names.add(name_of(kind))
    assert names == {"pack.nodes.Kind"}
