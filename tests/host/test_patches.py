"""What other nodes do to Wan's transformer: to ours as to core's with the same weights."""

import ast
import sys
from pathlib import Path

import graphs
import pytest
import torch

# What core's Wan looks up in what it is given, and what is the matter with it in ours.
HONOURED = {
    "transformer_options": {"patches", "patches_replace", "rope_options", "block_index"}
    | {"grid_sizes", "total_blocks", "block_type"},
    "patches": {"attn1_patch", "attn2_patch", "double_block"},
    "patches_replace": {"dit"},
    "rope_options": {f"{what}_{axis}" for what in ("scale", "shift") for axis in "txy"},
    "args": {"img", "txt", "vec", "pe", "transformer_options"},
    "out": {"img"},
    "handed out": {"x", "q", "k", "img", "vec", "txt", "pe"}
    | {"block_index", "img_offset", "transformer_options", "original_block"},
    "arguments": {"x", "timestep", "context", "clip_fea", "time_dim_concat"}
    | {"transformer_options"},
}
# How it calls attention; `low_precision_attention` since 0.31.
ATTENTION = {"heads", "transformer_options", "low_precision_attention"}
REFUSED = {"kwargs": {"reference_latent", "context_latents"}}
# What a prompt calls them.
IN_PROMPTS = {"reference_latent": "reference_latents", "context_latents": "context_latents"}
# Not looked up by name in core's other classes, which are other models.
CLASSES = ("WanModel", "WanSelfAttention", "WanT2VCrossAttention", "WanI2VCrossAttention",
           "WanAttentionBlock")  # fmt: skip
CALLS = ("blocks_replace", "p")  # what another node has given


def looked_up(source):
    """By the name of a mapping, the words that core's Wan reads or writes in it."""
    found = {}
    for owner in ast.parse(source).body:
        for function in getattr(owner, "body", ()) if getattr(owner, "name", "") in CLASSES else ():
            if getattr(function, "name", "__init__") == "__init__":
                continue
            if (owner.name, function.name) == ("WanModel", "_forward"):
                found["arguments"] = {argument.arg for argument in function.args.args[1:]}
            for mapping, key in (pair for part in ast.walk(function) for pair in keys(part)):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    found.setdefault(mapping, set()).add(key.value)
    return found


def keys(part):
    """Names of mappings and what is looked up in them, in one node of a source."""
    pairs = []
    match part:
        case ast.Subscript(value=ast.Name(id=name), slice=key):
            pairs = [(name, key)]
        case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[ast.Name(id=name)]):
            pairs = [(name, key)]
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="get" | "pop"), args=args):
            pairs = [(name, args[0])]
        case ast.Call(func=ast.Name(id="optimized_attention"), keywords=given):
            pairs = [("attention", ast.Constant(word.arg)) for word in given]
        case ast.Call(args=args):
            given = [argument for argument in args if isinstance(argument, ast.Dict)]
            pairs = [("handed out", key) for words in given for key in words.keys]
    return pairs


def test_core_looks_for_nothing_that_ours_does_not_honour_or_refuse(host):
    source = (Path(host) / "comfy" / "ldm" / "wan" / "model.py").read_text(encoding="utf-8")
    found = looked_up(source)
    # Indices and blocks of replacements are no words.
    assert found.pop("blocks_replace", set()) <= {"double_block"}
    assert {"heads"} < found.pop("attention") <= ATTENTION
    assert found == HONOURED | REFUSED


@pytest.fixture(scope="module")
def both(look, open_model, without_fps):
    """Transformers of our loader and core's with the same weights, in float32."""
    import comfy.model_management

    ours = open_model(without_fps)[0]
    loader = graphs.node("UNETLoader", unet_name=without_fps, weight_dtype="default")
    (core,) = look({"1": loader}, model=["1", 0])
    comfy.model_management.load_models_gpu([ours, core])
    return ours.model.diffusion_model, core.model.diffusion_model.float()


def run(model, given, options=None, **extra):
    with torch.inference_mode():
        x, t, text = (tensor.clone() for tensor in given)
        return model(x, t, text, transformer_options=dict(options or {}), **extra)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def look_at_attention(args):
    q, k = args["q"], args["k"]
    turned = (q + 2 * k).mean((2, 3))[..., None]  # no product of both, which tells no shift
    return args["x"] * (1 + turned) + args["transformer_options"]["block_index"]


def look_at_stream(args):
    assert set(args["transformer_options"]["grid_sizes"]) == {3, 2}
    return args["x"].mul_(0.5)  # in its place, as a node may


def look_at_block(args):
    seen = args["x"].mean() + args["vec"].mean() + args["img_offset"] + args["block_index"]
    return {"img": args["img"] * 0.9 + seen}


def turn_positions(args, extra):
    assert args["pe"].shape[-2:] == (2, 2)
    out = extra["original_block"]({**args, "pe": args["pe"].transpose(-1, -2)})
    return {"img": out["img"] + args["pe"].mean() + args["vec"].mean()}


def other_options(args, extra):
    options = {**args["transformer_options"], "patches": {"attn1_patch": [look_at_attention]}}
    return extra["original_block"]({**args, "transformer_options": options})


ROPE = {"scale_t": 0.5, "scale_y": 2.0, "scale_x": 1.5, "shift_t": 7.0, "shift_y": 3.0,
        "shift_x": -2.0}  # fmt: skip
OPTIONS = {
    "attn1_patch": {"patches": {"attn1_patch": [look_at_attention, look_at_attention]}},
    "attn2_patch": {"patches": {"attn2_patch": [look_at_stream]}},
    "double_block": {"patches": {"double_block": [look_at_block, look_at_block]}},
    "pe of a replacement": {"patches_replace": {"dit": {("double_block", 1): turn_positions}}},
    "options of a replacement": {"patches_replace": {"dit": {("double_block", 0): other_options}}},
    **{
        # Only who sees queries or keys can tell a shift.
        f"rope {key}": {
            "rope_options": {key: value},
            "patches": {"attn1_patch": [look_at_attention]},
        }
        for key, value in ROPE.items()
    },
    "rope": {"rope_options": ROPE},
    "all": {
        "patches": {
            "attn1_patch": [look_at_attention],
            "attn2_patch": [look_at_stream],
            "double_block": [look_at_block],
        },
        "patches_replace": {"dit": {("double_block", 1): turn_positions}},
        "rope_options": ROPE,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_do_to_ours_what_they_do_to_cores(both, inputs, name):
    ours, core = both
    wanted = run(core, inputs, OPTIONS[name])
    assert relative(run(ours, inputs, OPTIONS[name]), wanted) < 1e-5
    without = {k: v for k, v in OPTIONS[name].items() if k == "patches" and "rope " in name}
    assert relative(run(core, inputs, without), wanted) > 1e-4


@pytest.mark.parametrize("name", ["attn1_patch", "attn2_patch", "double_block", "all"])
def test_options_do_the_same_where_kernels_run(open_model, without_fps, inputs, request, name):
    """A patch of the stream between attention and feed-forward is given what it asks for."""
    import comfy.model_management

    loaded = open_model(without_fps, "bf16")[0]
    comfy.model_management.load_models_gpu([loaded])
    model, given = loaded.model.diffusion_model, [tensor.bfloat16() for tensor in inputs]
    plain, wanted = run(model, given), run(model, given, OPTIONS[name])
    kernels = request.getfixturevalue("kernels")
    assert relative(run(model, given), plain) < 0.01
    blocks = kernels.pop("turn") // 2
    assert blocks == len(model.blocks)
    assert relative(run(model, given, OPTIONS[name]), wanted) < relative(plain, wanted) / 10
    asked = "attn2_patch" in OPTIONS[name]["patches"]
    assert kernels["turn"] // 2 == (0 if asked else blocks)


def test_without_patches_not_a_bit_changes(both, inputs):
    ours, _ = both
    none = {"patches": {"attn1_patch": [], "attn2_patch": [], "double_block": []},
            "rope_options": {}}  # fmt: skip
    assert torch.equal(run(ours, inputs), run(ours, inputs, none))
    same = {"rope_options": {"scale_t": 1.0, "shift_x": 0.0}}
    assert torch.equal(run(ours, inputs), run(ours, inputs, same))


@pytest.mark.parametrize("options", [{}, OPTIONS["attn1_patch"]], ids=["plain", "patched"])
def test_an_image_is_not_seen_in_8_bits(host, options):
    """As by core's since 0.31: SageAttention can make NaN of so few tokens."""
    import comfy.ops

    name = next(
        n for n in sys.modules if "/" in n and n.endswith(".nodes.host.sockets.transformer")
    )
    seen = set()

    def attend(q, k, v, heads, transformer_options, **how):
        seen.add((k.shape[1], *how.items()))
        return torch.zeros_like(q)

    config = sys.modules[name].ModelConfig(
        model_type="i2v", dim=128, ffn_dim=64, num_heads=1, num_layers=1, in_dim=36, text_dim=64
    )
    layers = comfy.ops.disable_weight_init
    model = sys.modules[name].HostDiT(config, attend, layers, torch.float32, None)
    given = torch.zeros(1, 36, 3, 4, 4), torch.ones(1, 3), torch.zeros(1, 512, 64)
    run(model, given, options, clip_fea=torch.zeros(1, 257, 1280))
    assert seen == {(12,), (512,), (257, ("low_precision_attention", False))}


def test_what_a_patch_keeps_is_not_written_over(both, inputs):
    ours, _ = both
    kept = []

    def keep(args):
        kept.append((args["img"], args["img"].clone()))
        return {"img": args["img"]}

    assert torch.equal(run(ours, inputs), run(ours, inputs, {"patches": {"double_block": [keep]}}))
    assert kept
    assert all(torch.equal(seen, then) for seen, then in kept)


def test_subject_images_of_phantom_models_are_seen_as_by_cores(both, inputs):
    ours, core = both
    given = (inputs[0], torch.tensor([500.0]), inputs[2])
    images = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    wanted = run(core, given, time_dim_concat=images)
    assert relative(run(ours, given, time_dim_concat=images), wanted) < 1e-4
    assert relative(run(core, given), wanted) > 1e-3


def test_subject_images_are_refused_where_frames_have_timesteps(both, inputs):
    with pytest.raises(ValueError, match="time_dim_concat"):
        run(both[0], inputs, time_dim_concat=torch.zeros(1, 16, 1, 4, 4))
    given = (inputs[0], torch.tensor([500.0]), inputs[2])
    with pytest.raises(ValueError, match=r"time_dim_concat is \(1, 16, 1, 8, 4\).*\(1, 16, F, 4"):
        run(both[0], given, time_dim_concat=torch.zeros(1, 16, 1, 8, 4))


@pytest.mark.parametrize("key", [*IN_PROMPTS.values(), "control"])
def test_what_ours_has_no_part_for_is_refused_before_sampling(open_model, without_fps, key):
    model = open_model(without_fps)[0].model
    with pytest.raises(ValueError, match=rf"a prompt carries .* \({key}\)"):
        model.extra_conds(**{key: [torch.zeros(1, 16, 1, 4, 4)]})


def test_every_refused_word_of_cores_is_refused_in_prompts(host):
    name = next(n for n in sys.modules if "/" in n and n.endswith(".nodes.host.sockets.model"))
    assert set(IN_PROMPTS) == REFUSED["kwargs"]
    assert set(IN_PROMPTS.values()) <= set(sys.modules[name].NOT_TAKEN)
