"""What the host is told that sampling takes is what it takes: within 15 % of live bytes."""

import dataclasses
import itertools
import sys

import graphs
import pytest
import torch

from devtools.live_bytes import LiveBytes
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


def test_encoders_need_less_than_the_host_always_keeps_free(host, monkeypatch):
    """So it need not be told: text of 512 tokens at full size, and a picture."""
    import comfy.model_management
    import comfy.ops

    text = module("skyreels_model.text_encoder.network")
    image = module("skyreels_model.image_encoder")
    monkeypatch.setattr(text, "_check_text", lambda *given: [512])  # meta has no numbers
    sizes = text.UMT5Config(**vars(UMT5_XXL))
    encoder = (
        module("nodes.host.sockets.clip").HostTextEncoder(sizes, torch.bfloat16, None).transformer
    )
    tower = image.CLIPVision(CLIP_H, comfy.ops.manual_cast, dtype=torch.float16, device="meta")
    plain = (
        text.UMT5Encoder(sizes, dtype=torch.bfloat16, device="meta"),
        image.CLIPVision(CLIP_H, dtype=torch.float16, device="meta"),
    )
    for made, layout in zip((encoder, tower), plain, strict=True):
        made.load_state_dict(layout.state_dict(), assign=True)
    ids = torch.zeros(1, 512, dtype=torch.long, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        encoder(ids, ids.bool(), dtype=torch.float32)
        tower(torch.empty(1, 3, 224, 224, device="meta"))
    assert 0.2e9 < live.peak < comfy.model_management.minimum_inference_memory()
