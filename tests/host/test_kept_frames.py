"""Frames at rest that are kept, in the host: films, what they cost, what is refused; and blocks of
frames that see only those before them, with core's own sampler for them as the judge."""

import json
import sys

import graphs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("kept_loaders")

KEPT = ("kept", "kept_fp8", "kept_in_ram", "kept_in_ram_fp8")
SIZES = {
    "num_frames": 33, "window": 33, "width": 32, "height": 32, "overlap": 9, "steps": 6,
    "ar_step": 2, "block_size": 2, "history": "latents",
}  # fmt: skip


def module(name):
    """A module of the pack, as the host imported it."""
    return next(m for n, m in sys.modules.items() if "/" in n and n.endswith(f".{name}"))


@pytest.fixture(scope="module")
def model(open_model):
    return open_model(graphs.TOY["model"])[0]


@pytest.fixture(scope="module")
def texts():
    """A prompt and a negative prompt as the host's conditioning."""
    made = torch.Generator().manual_seed(3)
    text = torch.zeros(2, 1, 512, 64)
    text[:, :, :8] = torch.randn(2, 1, 8, 64, generator=made)
    return [[[one, {}]] for one in text]


@pytest.fixture
def seen(host, monkeypatch):
    """The latent frames of the transformer's forwards."""
    network, frames = module("skyreels_model.model.network").SkyReelsModel, []
    forward = network.forward

    def watched(self, x, *given, **named):
        frames.append(x.shape[2])
        return forward(self, x, *given, **named)

    monkeypatch.setattr(network, "forward", watched)
    return frames


def sample(model, texts, cfg=4.0, solver="unipc", curve="", seed=1, **changes):
    plan = module("skyreels_model.plan.film_plan").FilmPlan(**{**SIZES, **changes})
    guidance = module("skyreels_model.plan.guidance").film_guidance(cfg, curve)
    make = module("nodes.host.film.sampling").sample_film
    return make(model, *texts, plan, None, seed, guidance, solver)


def film(model, texts, **changes):
    latent, _ = sample(model, texts, **changes)
    return latent["samples"]


def share(plan):
    return module("skyreels_model.plan.resting").share_computed(plan)


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("changes", [{}, {"sliding": True, "window": 25}])
def test_frames_computed_in_every_call_are_the_film_without_the_option(model, texts, changes):
    whole = film(model, texts, **changes)
    kept = film(model, texts, **changes, finished_frames="kept", refresh_every=1)
    assert torch.equal(kept, whole)


def test_a_film_is_near_the_whole_one_and_computes_what_its_plan_says(model, texts, seen):
    changes = {"finished_frames": "kept", "num_frames": 49, "prefix_noise": 20, "cfg": 1.5}
    numbers = {name: value for name, value in {**SIZES, **changes}.items() if name != "cfg"}
    plan = module("skyreels_model.plan.film_plan").FilmPlan(**numbers)
    kept = film(model, texts, **changes)
    computed = sum(seen)
    seen.clear()
    whole = film(model, texts, **{**changes, "finished_frames": "computed"})
    assert computed / sum(seen) == pytest.approx(share(plan))
    assert share(plan) < 0.85
    # Another prompt, or another seed, is at 1 and more.
    assert 0 < relative(kept, whole) < 0.3
    assert torch.equal(film(model, texts, **changes), kept)


def test_where_and_how_frames_are_kept_hardly_changes_the_film(model, texts):
    kept, narrow, in_ram, both = (
        film(model, texts, finished_frames=name, num_frames=25, cfg=1.5) for name in KEPT
    )
    assert torch.equal(in_ram, kept) and torch.equal(both, narrow)
    assert 0 < relative(narrow, kept) < 0.05


def test_with_frames_that_wait_left_out_a_call_has_the_frames_at_work_alone(model, texts, seen):
    changes = {"finished_frames": "kept", "idle_frames": "left_out", "refresh_every": 100}
    plan = module("skyreels_model.plan.film_plan").FilmPlan(**{**SIZES, **changes})
    film(model, texts, **changes)
    assert sum(seen) == round(share(plan) * plan.total_rows() * 9)
    # Three blocks of 2 at work, one that is done and not yet kept, and a frame that waits.
    assert max(seen) == 9 and sorted(seen)[-2] <= 3 * 2 + 2 + 1


def test_a_curve_that_falls_to_1_and_prompts_one_by_one(model, texts, seen, monkeypatch):
    """The negative prompt is asked no more; what is kept is each batch's own."""
    curve, options = "1: 4, 0.9: 4, 0.89: 1", {"finished_frames": "kept", "refresh_every": 100}
    whole, kept = (film(model, texts, curve=curve, **given) for given in ({}, options))
    assert 0 < relative(kept, whole)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *_given, **_named: 1e30)
    monkeypatch.setattr("comfy.model_management.load_models_gpu", lambda *_given, **_named: None)
    apart = film(model, texts, curve=curve, **options)
    assert relative(apart, kept) < 1e-4


def test_with_the_forecasts_of_the_cache(model, texts, seen):
    settings = module("skyreels_model.cache.settings").CacheSettings(1.0)
    cached = module("nodes.host.film.cache").add_cache(model, settings)
    options = {"finished_frames": "kept", "steps": 12, "ar_step": 3}
    film(cached, texts, **options)
    calls, computed = len(seen), sum(seen)
    seen.clear()
    film(model, texts, **options)
    assert calls < 0.8 * len(seen) and computed < 0.9 * calls * 9


def test_nothing_is_left_of_a_cancelled_run(model, texts, monkeypatch):
    import comfy.model_management

    options = {"finished_frames": "kept", "refresh_every": 100}
    fresh = film(model, texts, **options)
    keeper = module("skyreels_model.cache.kept_frames").FrameKeeper
    forward, calls = keeper.forward, []

    def cancel(self, *given, **named):
        calls.append(1)
        if len(calls) == 10:
            raise comfy.model_management.InterruptProcessingException
        return forward(self, *given, **named)

    monkeypatch.setattr(keeper, "forward", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        film(model, texts, **options)
    monkeypatch.undo()
    assert torch.equal(film(model, texts, **options), fresh)


@pytest.mark.parametrize("finished_frames", KEPT)
def test_the_host_is_told_what_is_kept(model, texts, monkeypatch, finished_frames):
    keeper = module("skyreels_model.cache.kept_frames").FrameKeeper
    forward, kept, told = keeper.forward, [], []

    def note(self, *given, **named):
        out = forward(self, *given, **named)
        kept.append(sum(store.nbytes for store in self.stores.values()))
        told.append(model.model.memory_required([2, 16, 9, 4, 4]))
        return out

    monkeypatch.setattr(keeper, "forward", note)
    film(model, texts, finished_frames=finished_frames, refresh_every=100)
    monkeypatch.setattr(model.model, "kept", None)
    without = model.model.memory_required([2, 16, 9, 4, 4])
    joined = 2 * 2 * 9 * 4 * model.model.diffusion_model.config.dim * 4
    if "ram" in finished_frames:
        assert told[0] - without <= joined
    else:
        assert max(kept) <= told[0] - without <= max(kept) + joined


def options_of(model):
    return model.model_options["transformer_options"]


def compile_model(model):
    model.model_options["torch_compile_kwargs"] = {}


def share_model(model):
    options_of(model)[module("nodes.host.sockets.sharing").SHARED] = object()


def cut_model(model):
    model.model_options["context_handler"] = object()


def patch_attention(model):
    model.set_model_attn1_output_patch(patched_attention)
    options_of(model)["patches"] = {"attn1_patch": [patched_attention]}


def patched_attention(args):
    return args["x"]


def replace_block(model):
    options_of(model)["patches_replace"] = {"dit": {("double_block", 1): patched_attention}}


def replace_object(model):
    model.add_object_patch("diffusion_model.blocks.0.ffn", torch.nn.Identity())


def cache_blocks(model):
    settings = module("nodes.host.sockets.tea_cache")
    options_of(model)[settings.SETTINGS] = settings.PublishedCache(0.1)


def cache_all(model):
    options_of(model)["easycache"] = object()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (compile_model, "compiles the model (torch.compile)"),
        (share_model, "SkyReels-V2 Multi-GPU shares"),
        (cut_model, "context windows"),
        (patch_attention, "patched_attention"),
        (replace_block, "patched_attention"),
        (replace_object, "has replaced diffusion_model.blocks.0.ffn by a"),
        (cache_blocks, "published TeaCache"),
        (cache_all, "EasyCache or LazyCache"),
    ],
)
def test_what_wants_all_frames_is_refused_by_name(model, texts, seen, change, words):
    changed = model.clone()
    options_of(changed).pop("patches", None)
    change(changed)
    with pytest.raises(ValueError) as refused:
        film(changed, texts, finished_frames="kept", ar_step=0)
    text = str(refused.value)
    assert words in text and text.startswith("finished_frames is kept, and ")
    assert text.endswith("or set finished_frames to computed") and not seen


def test_another_loaders_model_is_refused(look, texts, without_fps):
    loader = graphs.node("UNETLoader", unet_name=without_fps, weight_dtype="default")
    (core,) = look({"1": loader}, model=["1", 0])
    with pytest.raises(ValueError, match="WanModel from another loader"):
        film(core, texts, finished_frames="kept")


def test_ram_that_does_not_suffice_is_said_before_sampling(model, texts, seen, monkeypatch):
    memory = module("nodes.host.sockets.memory")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("", (), {"available": 0})())
    monkeypatch.setattr(memory.psutil, "swap_memory", lambda: type("", (), {"free": 0})())
    with pytest.raises(ValueError, match="finished_frames kept_in_ram needs .* GB of RAM"):
        film(model, texts, finished_frames="kept_in_ram")
    assert not seen


# Blocks that see only what is before them.


@pytest.fixture(scope="module")
def causal_name(models_folder, without_fps):
    """A file of the toy model that says that it is causal, as core reads it."""
    path = models_folder / "diffusion_models" / without_fps
    with safe_open(path, framework="pt") as opened:
        config = json.loads(opened.metadata()["config"])
    config["transformer"]["causal_ar"] = True
    told = {"config": json.dumps(config)}
    save_file(load_file(path), models_folder / "diffusion_models" / "blocks.safetensors", told)
    return "blocks.safetensors"


@pytest.fixture(scope="module")
def causal(open_model, causal_name):
    return open_model(causal_name)


SIGMAS = (1.0, 0.9, 0.7, 0.4, 0.0)
BLOCKS = {"sigmas": SIGMAS, "ar_step": 4, "block_size": 3, "prefix_noise": 0}


def drawn(block, step, shape):
    """Core's noise of a step."""
    torch.manual_seed(5 + block * 1000 + step)
    return torch.randn(shape)


def test_one_window_is_that_of_cores_sampler(look, causal, causal_name, texts, monkeypatch):
    """Equal weights, noise, levels: core's SamplerARVideo with its own model of blocks."""
    import comfy.sample
    import comfy.samplers

    model, report = causal
    assert "Wan 2.1 causal" in report or "SkyReels-V2 causal" in report
    noise = torch.randn(1, 16, 9, 4, 4, generator=torch.Generator().manual_seed(9))
    loader = graphs.node("UNETLoader", unet_name=causal_name, weight_dtype="default")
    (core,) = look({"1": loader}, model=["1", 0])
    assert type(core.model.diffusion_model).__name__ == "CausalWanModel"
    core.model.diffusion_model.float()
    monkeypatch.setattr(core.model, "get_dtype", lambda: torch.float32)
    monkeypatch.setattr(core.model, "manual_cast_dtype", torch.float32)
    monkeypatch.setattr(core.model, "get_dtype_inference", lambda: torch.float32)
    sampler = comfy.samplers.ksampler("ar_video", {"num_frame_per_block": 3})
    expected = comfy.sample.sample_custom(
        core, noise, 1.0, sampler, torch.tensor(SIGMAS), *texts, torch.zeros_like(noise),
        disable_pbar=True, seed=5,
    )  # fmt: skip

    class CoresNoise(module("skyreels_model.rollout.noise").ShotNoise):
        def initial(self, window, shape):
            return noise

        def renoise(self, window, row, shape):
            made = torch.zeros(shape)
            block, step = divmod(row, 4)
            part = made[:, :, block * 3 : block * 3 + 3]
            part.copy_(drawn(block, step, part.shape))
            return made

    sampling = module("nodes.host.film.sampling")
    monkeypatch.setattr(sampling, "film_noise", lambda plan, seeds, _: CoresNoise(plan, seeds))
    found = film(model, texts, cfg=1.0, solver="lcm", **BLOCKS)
    assert relative(found, expected) < 1e-4


@pytest.mark.parametrize("changes", [{}, {"num_frames": 57, "window": 33}])
def test_each_block_is_computed_once_and_costs_itself(causal, texts, seen, changes):
    film(causal[0], texts, cfg=1.0, solver="lcm", **{**BLOCKS, **changes})
    assert max(seen) == 6 and seen.count(6) == sum(frames == 6 for frames in seen)
    assert set(seen) == {3, 6}


def test_a_sliding_film_costs_and_keeps_the_same_however_long(causal, texts, seen, monkeypatch):
    keeper = module("skyreels_model.cache.kept_frames").FrameKeeper
    forward, kept = keeper.forward, []

    def note(self, *given, **named):
        out = forward(self, *given, **named)
        kept.append(sum(store.nbytes for store in self.stores.values()))
        return out

    monkeypatch.setattr(keeper, "forward", note)
    most = []
    for frames in (57, 93):
        changes = {"sliding": True, "num_frames": frames, "window": 33}
        film(causal[0], texts, cfg=1.0, solver="lcm", **{**BLOCKS, **changes})
        most.append((max(seen), max(kept)))
        seen.clear(), kept.clear()
    assert most[0] == most[1] and most[0][0] == 6


def test_films_begin_alike_whatever_their_length(causal, texts):
    short, long = (
        film(causal[0], texts, cfg=1.0, solver="lcm", sliding=True, **{**BLOCKS, "num_frames": n})
        for n in (33, 57)
    )
    assert torch.equal(short, long[:, :, : short.shape[2]])


def test_a_causal_model_is_told_apart_and_its_limits_are_said(causal, texts, caplog):
    model, _ = causal
    sample(model, texts, steps=3, ar_step=1, num_frames=17, window=17)
    assert "want solver lcm and cfg 1" in caplog.text and "Set ar_step to steps (3)" in caplog.text
    blocked = model.clone()
    replace_block(blocked)
    with pytest.raises(ValueError, match="^model's variant is causal, and a node changes its"):
        film(blocked, texts)
    film_images = module("skyreels_model.plan.given").Given(end=True)
    plan = module("skyreels_model.plan.film_plan").FilmPlan(**SIZES).fit(film_images)
    with pytest.raises(ValueError, match="causal, whose frames .* frames has an end image"):
        module("nodes.host.film.resting").check_resting(model, plan, print)
    with pytest.raises(ValueError, match="takes has 'shot 1 only', and model's variant is causal"):
        module("nodes.host.film.resting").refuse_leading_in("shot 1 only: seed 7")


def test_another_sampler_says_that_all_frames_see_each_other(causal, texts, caplog):
    import nodes

    latent = {"samples": torch.zeros(1, 16, 3, 4, 4)}
    nodes.common_ksampler(causal[0], 1, 2, 1.0, "euler", "simple", *texts, latent)
    assert "this sampler lets all of its frames see each other" in caplog.text


def test_an_image_model_is_not_causal(open_model, run_prompt):
    prompt = graphs.film()
    prompt["1"]["inputs"] |= {
        "model_name": "toy/SkyReels-V2-I2V-Toy-32P/model.safetensors", "variant": "causal",
    }  # fmt: skip
    prompt["8"] = graphs.node("PreviewAny", source=["1", 1])
    result = run_prompt(prompt)
    assert not result.success
    assert "variant is 'causal'; it must be of a model without image" in result.describe()
