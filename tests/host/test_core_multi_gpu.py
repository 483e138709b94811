"""ComfyUI's own nodes for several GPUs with our models, on two stand-ins for cards (`tests/card`).

An operator that meets tensors of two cards fails there, as on real ones.
"""

import sys

import graphs
import pytest
import torch
from card.install import installed, use_dynamic
from card.tensors import CARD, SECOND, Dispatch

from devtools import inprocess

FILM = {"frames": 9, "window": 5, "overlap": 1, "steps": 2, "ar_step": 1}


@pytest.fixture
def cards(host, monkeypatch):
    import comfy.cli_args
    import comfy.model_management
    import comfy.multigpu

    inprocess.unload_models()
    # A VAE in bf16, the default on cards, takes a CPU long.
    monkeypatch.setattr(comfy.cli_args.args, "fp32_vae", True)
    pool = comfy.multigpu.MultiGPUThreadPool
    work = pool._worker_loop

    def work_on_cards(*given):
        with torch.inference_mode(), Dispatch():
            work(*given)

    monkeypatch.setattr(pool, "_worker_loop", work_on_cards)
    # LoRAs with the numbers that they have on the CPU.
    monkeypatch.setattr(comfy.model_management, "lora_compute_dtype", lambda device: torch.float32)
    with torch.inference_mode(), installed(monkeypatch, cards=2) as card:
        yield card


@pytest.fixture
def computed():
    """Where the modules of each class have computed, while the test runs."""
    found = {}

    def note(module, _given, out):
        if isinstance(out, torch.Tensor):
            found.setdefault(type(module).__name__, set()).add(out.device)

    hook = torch.nn.modules.module.register_module_forward_hook(note)
    yield found
    hook.remove()


def find_module(name):
    """A module of the pack, as the host has loaded it."""
    return next(m for n, m in sys.modules.items() if "/" in n and n.endswith(f".{name}"))


def film(lora=None, **settings):
    """A film in float32, where prompts apart have the numbers of prompts together."""
    prompt = graphs.film(**FILM, **settings)
    prompt["1"]["inputs"]["weight_dtype"] = "fp32"
    if lora:
        prompt["8"] = graphs.node(
            "LoraLoaderModelOnly", model=["1", 0], lora_name=lora, strength_model=1.0
        )
        prompt["6"]["inputs"]["model"] = ["8", 0]
    return prompt


def put(prompt, class_type, link, **inputs):
    """A node of the host's between an output and all that take it."""
    name = f"{class_type} after {link[0]}"
    made = graphs.node(class_type, **inputs)
    for other in prompt.values():
        other["inputs"] = {k: [name, 0] if v == link else v for k, v in other["inputs"].items()}
    slot = {"MultiGPU_WorkUnits": "model", "SelectModelDevice": "model"}.get(class_type)
    made["inputs"][slot or class_type.removeprefix("Select").removesuffix("Device").lower()] = link
    prompt[name] = made
    return prompt


def split(prompt, max_gpus=2):
    return put(prompt, "MultiGPU_WorkUnits", prompt["6"]["inputs"]["model"], max_gpus=max_gpus)


@pytest.fixture(scope="module")
def alone(look, small_lora):
    """The film with a LoRA, on the CPU."""
    prompt = film(small_lora)
    return look(prompt, latent=["6", 0], frames=["7", 0])


def same(found, wanted):
    """Up to float32 rounding, which grows from window to window; a LoRA changes 1000 times that."""
    return (found - wanted).norm() <= 1e-4 * wanted.norm()


def test_prompts_on_two_cards_make_the_film_of_one(alone, cards, computed, look, small_lora):
    """And text encoder and VAE on the second make what they make on the first."""
    prompt = split(film(small_lora))
    put(prompt, "SelectCLIPDevice", ["2", 0], device="gpu:1")
    put(prompt, "SelectVAEDevice", ["3", 0], device="gpu:1")
    latent, frames = look(prompt, latent=["6", 0], frames=["7", 0])
    assert same(latent["samples"], alone[0]["samples"]) and same(frames, alone[1])
    assert computed["HostDiT"] == {CARD, SECOND}
    assert computed["UMT5Encoder"] == computed["Decoder"] == computed["Encoder"] == {SECOND}


def test_a_model_that_is_at_home_on_the_second_card(
    alone, cards, computed, look, small_lora, monkeypatch
):
    """Under ComfyUI's default memory path on cards."""
    use_dynamic(monkeypatch)
    prompt = split(put(film(small_lora), "SelectModelDevice", ["1", 0], device="gpu:1"))
    (latent,) = look(prompt, latent=["6", 0])
    assert same(latent["samples"], alone[0]["samples"])
    assert computed["HostDiT"] == {CARD, SECOND}
    assert not cards.vram.in_use()


def test_ksampler_with_the_published_cache(cards, computed, look):
    """It keeps what the blocks made of each prompt, on the card that has the prompt."""
    import nodes

    prompt = split(film())
    plain, apart, *texts = look(
        prompt, plain=["1", 0], apart=prompt["6"]["inputs"]["model"], yes=["4", 0], no=["4", 1]
    )
    cache = find_module("nodes.host.sockets.tea_cache")
    rule = find_module("skyreels_model.cache.published").Rule("toy", (1.0, 0.0), False, 1, 1)
    settings, made = cache.PublishedCache(0.5, rule=rule), []
    for model in (plain, apart):
        model = cache.use_published(model, settings)
        latent = {"samples": torch.zeros(1, 16, 2, 4, 4)}
        made += nodes.common_ksampler(model, 1, 6, 4.0, "euler", "simple", *texts, latent)
    assert same(made[1]["samples"], made[0]["samples"])
    assert computed["HostDiT"] == {CARD, SECOND}


def test_a_film_is_the_same_to_its_store(cards, look):
    prompt = split(film())
    models = look(prompt, plain=["1", 0], apart=prompt["6"]["inputs"]["model"])
    identify = find_module("nodes.host.film.identity").identify_model
    assert identify(models[0]) == identify(models[1])


def test_the_two_ways_together_are_refused_by_name(cards, look, monkeypatch):
    """Whichever comes first: where nodes put them on a model, or where it is sampled."""
    import comfy.multigpu

    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    prompt = split(film())
    plain, apart = look(prompt, plain=["1", 0], apart=prompt["6"]["inputs"]["model"])
    share_model = find_module("nodes.host.multi_gpu.shared").share_model
    with pytest.raises(ValueError, match="MultiGPU CFG Split .* Use one of the two"):
        share_model(apart, "all", 0, 0, 60.0)
    shared, _ = share_model(plain, "all", 0, 0, 60.0)
    apart = comfy.multigpu.create_multigpu_deepclones(shared, 2)
    check = find_module("nodes.host.multi_gpu.refusals").check_patcher
    with pytest.raises(ValueError, match="MultiGPU CFG Split .* Use one of the two"):
        check(apart, {})
