"""What the host is told that sampling takes is what it takes: within 15 % of live bytes."""

import dataclasses
import itertools
import sys

import graphs
import pytest
import torch

from devtools.live_bytes import LiveBytes, flash_sdpa
from skyreels_model.image_encoder import CLIPVisionConfig
from toy.random_weights import PUBLISHED, UMT5_XXL

SIZES = ((1, 68, 120), (25, 68, 120), (31, 90, 160))  # up to 720P, in latents
NEAR = 0.15
CLIP_H = CLIPVisionConfig(1280, 5120, 16, 32, 1024)


def module(name):
    """A module of the pack, as the host imported it."""
    return next(m for n, m in sys.modules.items() if "/" in n and n.endswith(f".{name}"))


def flash(q, k, v, heads, **_options):
    """Attention that makes what flash attention makes: the result, and a sum a row and head."""
    sums = torch.empty(q.shape[0], heads, q.shape[1], device=q.device)
    out = torch.empty_like(q)
    del sums
    return out


def meta_model(config, weights, compute):
    """The host's model with two blocks, weights held and computed in these dtypes, on meta."""
    host = module("nodes.host.sockets.model")
    config = dataclasses.replace(config, num_layers=2)
    described = {"image_model": "wan2.1", "model_type": config.model_type, "dim": config.dim,
                 "skyreels": module("skyreels_model.model.config").ModelConfig(**vars(config)),
                 "attention": "pytorch"}  # fmt: skip
    made = host.HostConfig(described)
    made.set_inference_dtype(weights, None if weights == compute else compute)
    model = made.get_model(device="meta")
    model.diffusion_model.attention = flash
    for parameter in model.diffusion_model.parameters():
        parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize("name", ["DF-1.3B-540P", "DF-14B-540P", "I2V-14B-540P"])
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float8_e4m3fn])
def test_forwards_at_full_size(host, name, weights):
    config = PUBLISHED[name]
    model = meta_model(config, weights, torch.bfloat16)
    for batch, (frames, h, w) in itertools.product((1, 2), SIZES):
        given = {"device": "meta"}
        x = torch.empty(batch, 16, frames, h, w, **given)
        rest = torch.empty(batch, config.in_dim - 16, frames, h, w, **given)
        concat = {"c_concat": rest} if config.in_dim > 16 else {}
        context = torch.empty(batch, 512, 4096, **given)
        with torch.no_grad(), LiveBytes() as live:
            model.apply_model(x, torch.empty(batch, **given), c_crossattn=context, **concat)
        told = model.memory_required(list(x.shape), {"c_crossattn": [[1, 512, 4096]] * batch})
        around = 10 * x.nbytes // batch  # what the film keeps beside, see `memory`
        assert abs(told / (live.peak + around) - 1) < 0.06, (batch, frames, told, live.peak)


def test_longer_texts_need_more(host):
    model = meta_model(PUBLISHED["DF-1.3B-540P"], torch.bfloat16, torch.bfloat16)
    shape = [1, 16, 1, 30, 52]
    short, long = (
        model.memory_required(shape, {"c_crossattn": [[1, n, 4096]]}) for n in (77, 4096)
    )
    assert short < model.memory_required(shape) < long


@pytest.mark.parametrize(("frames", "width", "height"), [(17, 128, 128), (33, 256, 192)])
@pytest.mark.parametrize(("solver", "cfg"), [("unipc", 1.0), ("unipc", 4.0), ("dpmpp_2m", 4.0)])
def test_films_through_the_hosts_guider(open_model, frames, width, height, solver, cfg):
    """All of it, in small: film, solver, guidance and forward, with one prompt and with two."""
    import comfy.model_management

    plan = module("skyreels_model.plan.film_plan").FilmPlan(
        num_frames=frames, window=frames, width=width, height=height, overlap=5, steps=3
    )
    guidance = module("skyreels_model.plan.guidance").film_guidance(cfg, "")
    sample = module("nodes.host.film.sampling").sample_film
    model, _ = open_model(graphs.TOY["model"])
    comfy.model_management.load_models_gpu([model])
    texts = [[[torch.randn(1, 512, 64), {}]] for _ in range(2)]
    # Only without inference mode is seen what is made inside of an operator.
    with torch.no_grad(), LiveBytes() as live:
        sample(model, *texts, plan, None, 1, guidance, solver)
    shape = [1 if cfg == 1 else 2, 16, plan.latent_frames, *plan.latent_size]
    told = model.model.memory_required(shape)
    assert abs(told / live.peak - 1) < NEAR, (told, live.peak)


@pytest.mark.parametrize("length", [1, 40, 512])
def test_prompts_take_what_the_host_is_told(host, monkeypatch, length):
    text = module("skyreels_model.text_encoder.network")
    monkeypatch.setattr(text, "_check_text", lambda *given: [length])  # meta has no numbers
    monkeypatch.setattr(text.F, "scaled_dot_product_attention", flash_sdpa)
    sizes = module("skyreels_model.text_encoder.config").UMT5Config(**vars(UMT5_XXL))
    sizes = dataclasses.replace(sizes, num_layers=2)
    encoder = module("nodes.host.sockets.clip").HostTextEncoder(sizes, torch.bfloat16, None)
    layout = text.UMT5Encoder(sizes, dtype=torch.bfloat16, device="meta")
    encoder.transformer.load_state_dict(layout.state_dict(), assign=True)
    ids = torch.zeros(1, 512, dtype=torch.long, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        encoder.transformer(ids, ids.bool(), dtype=torch.float32)
    told = encoder.memory_estimation_function({"umt5xxl": [[(0, 1.0)] * length]})
    assert abs(told / live.peak - 1) < 0.05, (told, live.peak)
    assert encoder.memory_estimation_function({}) >= told  # of any prompt


@pytest.mark.parametrize(("batch", "side"), [(1, 224), (1, 2048), (50, 300)])
def test_pictures_take_what_the_host_is_told(host, monkeypatch, batch, side):
    import comfy.model_management
    import comfy.ops

    image = module("skyreels_model.image_encoder.network")
    attend = module("skyreels_model.attention.attend")
    monkeypatch.setattr(attend, "scaled_dot_product_attention", flash_sdpa)
    config = module("skyreels_model.image_encoder.config").CLIPVisionConfig(**vars(CLIP_H))
    tower = image.CLIPVision(config, comfy.ops.manual_cast, dtype=torch.float16, device="meta")
    layout = image.CLIPVision(config, dtype=torch.float16, device="meta")
    tower.load_state_dict(layout.state_dict(), assign=True)
    made = module("nodes.host.sockets.clip_vision").HostCLIPVision(tower, disable_dynamic=True)
    made.load_device, told = torch.device("meta"), {}
    management = comfy.model_management
    monkeypatch.setattr(management, "load_models_gpu", lambda models, **given: told.update(given))
    monkeypatch.setattr(management, "intermediate_device", lambda: made.load_device)
    given = torch.empty(batch, side, side, 3, dtype=torch.float16, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        made.encode_image(given)
    assert abs(told["memory_required"] / live.peak - 1) < 0.05, (told, live.peak)


def test_the_host_asks_before_it_encodes(look, monkeypatch):
    """What it frees for a prompt and for pictures is what we say, not its own minimum alone."""
    import comfy.model_management

    clip = graphs.node("SkyReelsV2TextEncoderLoader", text_encoder_name=graphs.TOY["text"])
    name = "toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    vision = graphs.node("SkyReelsV2ImageEncoderLoader", image_encoder_name=name)
    clip, vision = look({"1": clip, "2": vision}, clip=["1", 0], vision=["2", 0])
    asked, load = [], comfy.model_management.load_models_gpu

    def spy(models, memory_required=0, **options):
        asked.append(memory_required)
        load(models, memory_required=memory_required, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", spy)
    tokens = clip.tokenize("a red square")
    with torch.inference_mode():
        clip.encode_from_tokens(tokens)
        vision.encode_image(torch.rand(2, 8, 8, 3))
    encoder = clip.cond_stage_model
    assert asked == [encoder.memory_estimation_function(tokens), vision.memory_required((2, 8, 8))]
    assert min(asked) > 0
