"""Image-to-video models in the host: our nodes and core's, in every mixture."""

import json
import sys

import graphs
import pytest
import torch
from graphs.image_encoders import CORE_TOWER, TOWER, hf_names, random_state
from safetensors.torch import load_file, save_file

from devtools import inprocess
from skyreels_model.config import ModelConfig
from skyreels_model.image_encoder import CLIPVision, CLIPVisionConfig
from toy import random_weights

pytestmark = pytest.mark.usefixtures("kept_loaders")

MODEL = "i2v.safetensors"
ORIGINAL, HF = "clip_original.pth", "clip_hf.safetensors"
NARROW, WRONG = "clip_narrow.pth", "clip_wrong.safetensors"


@pytest.fixture(scope="module", autouse=True)
def files(host, tmp_path_factory):
    """A tiny I2V model and tiny image encoders in every layout, where the host finds them."""
    folder = tmp_path_factory.mktemp("i2v")
    for category in ("diffusion_models", "clip_vision"):
        (folder / category).mkdir()
    config = ModelConfig(
        model_type="i2v", dim=128, ffn_dim=64, num_heads=1, num_layers=1, in_dim=36, text_dim=64
    )
    random_weights.write_dit(folder / "plain.safetensors", config)
    # The text's width, which core's loader cannot read from the tensors.
    metadata = {"format": "pt", "config": json.dumps({"transformer": {"text_dim": 64}})}
    state = load_file(folder / "plain.safetensors")
    save_file(state, folder / "diffusion_models" / MODEL, metadata)
    state = random_state(CLIPVisionConfig(**TOWER))
    clip = folder / "clip_vision"
    torch.save({**state, "textual.norm.weight": torch.ones(3), "log_scale": torch.ones(())},
               clip / ORIGINAL)  # fmt: skip
    save_file(hf_names(state), clip / HF)
    narrow = CLIPVisionConfig(dim=80, dim_mlp=64, num_heads=1, num_layers=1, out_dim=8)
    torch.save(random_state(narrow), clip / NARROW)
    save_file({"decoder.conv1.weight": torch.zeros(1)}, clip / WRONG)
    inprocess.add_models(folder)
    return folder


def film(picture=(32, 32), seed=1, **changes):
    """`graphs.film` from a picture (node "11") by our ImageToVideo (node "13")."""
    prompt = graphs.film()
    prompt["1"]["inputs"]["model_name"] = MODEL
    prompt["10"] = graphs.node(
        "EmptyImage", width=picture[0], height=picture[1], batch_size=1, color=8421504
    )
    prompt["11"] = graphs.node("ImageAddNoise", image=["10", 0], seed=seed, strength=0.8)
    prompt["12"] = graphs.node("SkyReelsV2ImageEncoderLoader", image_encoder_name=ORIGINAL)
    inputs = {"width": 32, "height": 32, "frames": 17, "clip_vision": ["12", 0], **changes}
    prompt["13"] = graphs.node(
        "SkyReelsV2ImageToVideo",
        positive=["4", 0],
        negative=["4", 1],
        vae=["3", 0],
        start_image=["11", 0],
        **inputs,
    )
    prompt["6"]["inputs"] |= {"positive": ["13", 0], "negative": ["13", 1]}
    return prompt


def with_core_nodes(prompt):
    """The same graph with core's WanImageToVideo and CLIPVisionEncode in the place of our node."""
    prompt["20"] = graphs.node(
        "CLIPVisionEncode", clip_vision=["12", 0], image=["11", 0], crop="none"
    )
    prompt["13"] = graphs.node(
        "WanImageToVideo",
        positive=["4", 0],
        negative=["4", 1],
        vae=["3", 0],
        width=32,
        height=32,
        length=17,
        batch_size=1,
        clip_vision_output=["20", 0],
        start_image=["11", 0],
    )
    return prompt


def with_ksampler(prompt):
    prompt["30"] = graphs.node("ModelSamplingSD3", model=["1", 0], shift=5.0)
    prompt["31"] = graphs.node(
        "KSampler",
        model=["30", 0],
        seed=3,
        steps=4,
        cfg=4.0,
        sampler_name="uni_pc",
        scheduler="simple",
        positive=["13", 0],
        negative=["13", 1],
        latent_image=["13", 2],
        denoise=1.0,
    )
    return prompt


def relative(a, b):
    return float((a - b).norm() / b.norm())


def final(look, prompt, node="6"):
    samples = look(prompt, latent=[node, 0])[0]["samples"]
    assert samples.shape == (1, 16, 5, 4, 4) and samples.isfinite().all()
    return samples


def test_our_sampler_makes_a_film_that_depends_on_image_and_clip(look):
    plain = final(look, film())
    another = final(look, film(seed=2))
    assert torch.equal(plain, final(look, film()))
    assert relative(another, plain) > 1e-3
    blind = film()
    del blind["13"]["inputs"]["clip_vision"]
    assert relative(final(look, blind), plain) > 1e-4


def test_ksampler_with_our_model_and_with_cores(look):
    """Core's own transformer is the judge of ours, under core's sampler and our conditioning."""
    ours, core = with_ksampler(film()), with_ksampler(film())
    core["1"] = graphs.node("UNETLoader", unet_name=MODEL, weight_dtype="default")
    mine, theirs = final(look, ours, "31"), final(look, core, "31")
    assert relative(mine, theirs) < 1e-3
    unseen = with_ksampler(film(seed=2))
    assert relative(final(look, unseen, "31"), mine) > 1e-3


def test_our_sampler_with_cores_nodes(look):
    """With a picture that needs no resizing core's nodes give what ours gives."""
    ours, mixed = film(), with_core_nodes(film())
    assert torch.equal(final(look, ours), final(look, mixed))


def test_our_sampler_with_cores_model(look):
    """Whoever loaded it, the sampler takes it."""
    prompt = film()
    mine = final(look, prompt)
    prompt["1"] = graphs.node("UNETLoader", unet_name=MODEL, weight_dtype="default")
    assert relative(final(look, prompt), mine) < 1e-3


def test_frames_that_wait_are_left_out_of_the_image_too(look, monkeypatch):
    """The host lays it beside the latents, for our model and for core's."""
    name = next(n for n in sys.modules if "/" in n and n.endswith("sockets.transformer"))
    dit, shapes = sys.modules[name].HostDiT, []
    original = dit.forward

    def forward(self, x, *args, **kwargs):
        shapes.append(tuple(x.shape[1:3]))
        return original(self, x, *args, **kwargs)

    monkeypatch.setattr(dit, "forward", forward)
    prompt = with_schedule(film(), ar_step=1, idle_frames="left_out")
    mine = final(look, prompt)
    assert list(dict.fromkeys(shapes)) == [(36, 2), (36, 3), (36, 4), (36, 5)]
    prompt["1"] = graphs.node("UNETLoader", unet_name=MODEL, weight_dtype="default")
    assert relative(final(look, prompt), mine) < 1e-3


def test_model_is_shown_the_references_channels(look):
    """Mask, then normalised latents, of the picture fitted to the film's size."""
    prompt = film(picture=(52, 30))
    model, (entry,), image, vae = look(
        prompt, model=["1", 0], positive=["13", 0], image=["11", 0], vae=["3", 0]
    )
    from skyreels_model.framing import fit_image
    from skyreels_model.vae import normalize_latents

    noise = torch.zeros(1, 16, 5, 4, 4)
    options = {k: v for k, v in entry[1].items() if k.startswith("concat_")}
    shown = model.model.concat_cond(noise=noise, device=noise.device, **options)
    assert shown.shape == (1, 20, 5, 4, 4)
    assert (shown[:, :4, 0] == 1).all() and (shown[:, :4, 1:] == 0).all()
    frames = torch.full((17, 32, 32, 3), 0.5)
    frames[0] = fit_image(image[0], 32, 32)
    assert torch.allclose(shown[:, 4:], normalize_latents(vae.encode(frames)), atol=1e-5)


def test_latent_has_the_films_size(look):
    (latent,) = look(film(width=64, height=48, frames=13), latent=["13", 2])
    assert latent["samples"].shape == (1, 16, 4, 6, 8) and not latent["samples"].any()


@pytest.mark.parametrize("name", [ORIGINAL, HF])
def test_clip_vision_encode_takes_our_encoder_from_either_layout(look, name):
    prompt = film(picture=(40, 64))
    prompt["12"]["inputs"]["image_encoder_name"] = name
    links = {}
    for crop in ("none", "center"):
        prompt[crop] = graphs.node(
            "CLIPVisionEncode", clip_vision=["12", 0], image=["11", 0], crop=crop
        )
        links[crop] = [crop, 0]
    image, report, whole, middle = look(prompt, image=["11", 0], report=["12", 1], **links)
    assert "width 1280, 2 layers, 257 tokens" in report and "0 missing, 0 unexpected" in report
    from skyreels_model.image_encoder import preprocess

    encoder = CLIPVision(CLIPVisionConfig(**TOWER))
    encoder.load_state_dict(random_state(encoder.config))
    pixels = preprocess(image.movedim(-1, 1))
    with torch.inference_mode():
        features = encoder(pixels)
        last, embedding = encoder.pool(features)
        square = encoder(preprocess(image.movedim(-1, 1)[:, :, 12:52]))
    assert whole.penultimate_hidden_states.shape == (1, 257, 1280)
    assert relative(whole.penultimate_hidden_states, features) < 1e-5
    assert relative(whole.last_hidden_state, last) < 1e-5
    assert relative(whole.image_embeds, embedding) < 1e-5
    assert relative(middle.penultimate_hidden_states, square) < 1e-5


@pytest.fixture
def core_encoder(host):
    """Core's own encoder, of our tower's size and with its weights."""
    import comfy.clip_vision

    encoder = comfy.clip_vision.ClipVisionModel(CORE_TOWER)
    missing, unexpected = encoder.load_sd(hf_names(random_state(CLIPVisionConfig(**TOWER))))
    assert not missing and not unexpected
    return encoder


def test_our_node_takes_cores_encoder(look, core_encoder):
    """Which then sees the picture as the models were trained to, up to its 8 bits."""
    import nodes

    prompt = film(picture=(52, 48))
    image, positive, vae, ours = look(
        prompt, image=["11", 0], positive=["4", 0], vae=["3", 0], ours=["13", 0]
    )
    node = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2ImageToVideo"]
    with torch.inference_mode():
        out = node.execute(positive, positive, vae, image, 32, 32, 17, core_encoder)
        antialiased = core_encoder.encode_image(image, crop=True).penultimate_hidden_states
    theirs = out.args[0][0][1]["clip_vision_output"].penultimate_hidden_states
    mine = ours[0][1]["clip_vision_output"].penultimate_hidden_states
    assert relative(theirs, mine) < 0.02 < relative(antialiased, mine)


def test_pad_shows_the_whole_picture(look):
    images = [
        look(film(picture=(64, 32), fit=fit), positive=["13", 0])[0] for fit in ("crop", "pad")
    ]
    latents = [entry[0][1]["concat_latent_image"] for entry in images]
    assert relative(*latents) > 1e-2


REFUSALS = [
    ({"width": 40}, ("width is 40", "16", "nearest: 48")),
    ({"height": 20}, ("height is 20", "16", "nearest: 16")),
]


def refused(run_prompt, prompt):
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success
    return result.describe()


@pytest.mark.parametrize(("change", "parts"), REFUSALS)
def test_sizes_are_checked(run_prompt, change, parts):
    text = refused(run_prompt, film(**change))
    assert all(part in text for part in parts), text


def with_schedule(prompt, **changes):
    prompt["5"]["inputs"] |= changes
    return prompt


PLANS = [
    ({"frames": 41}, ("window is 17 frames and the film has 41", "window to at least 41")),
    ({"width": 48}, ("positive carries an image for 32 x 32", "for 48 x 32")),
    ({"frames": 9}, ("32 x 32 and 17 frames", "32 x 32 and 9 frames")),
    ({"sliding": True, "ar_step": 5}, ("sliding is on", "turn sliding off")),
]


@pytest.mark.parametrize(("change", "parts"), PLANS)
def test_the_schedule_must_be_the_images(run_prompt, change, parts):
    text = refused(run_prompt, with_schedule(film(), **change))
    assert all(part in text for part in parts), text


def test_an_end_image_is_not_for_image_to_video_models(run_prompt):
    prompt = film()
    prompt["40"] = graphs.node("SkyReelsV2Frames", schedule=["5", 0], end_image=["11", 0])
    prompt["6"]["inputs"]["frames"] = ["40", 0]
    text = refused(run_prompt, prompt)
    assert "frames has an end image" in text and "DF checkpoint" in text


def test_a_storyboard_has_no_image_for_image_to_video_models(run_prompt):
    prompt = film()
    prompt["40"] = graphs.node("SkyReelsV2Storyboard", clip=["2", 0], prompt="a", seconds=0.7)
    prompt["6"]["inputs"]["storyboard"] = ["40", 0]
    text = refused(run_prompt, prompt)
    assert "storyboard is connected" in text and "image-to-video model" in text


def test_an_image_on_positive_alone_is_warned_of(look, caplog):
    prompt = film()
    look(prompt, film=["7", 0])
    assert "negative carries no image" not in caplog.text
    prompt["6"]["inputs"]["negative"] = ["4", 1]
    look(prompt, film=["7", 0])
    assert "negative carries no image" in caplog.text


def test_other_encoders_and_batches_are_refused(run_prompt):
    prompt = film()
    prompt["12"]["inputs"]["image_encoder_name"] = NARROW
    text = refused(run_prompt, prompt)
    assert "clip_vision" in text and "80" in text and "1280" in text
    prompt["12"]["inputs"]["image_encoder_name"] = WRONG
    text = refused(run_prompt, prompt)
    assert f"image_encoder_name '{WRONG}'" in text and "Wan 2.1 VAE" in text
    prompt = film()
    prompt["10"]["inputs"]["batch_size"] = 2
    text = refused(run_prompt, prompt)
    assert "start_image is a batch of 2" in text and "ImageFromBatch" in text


def test_loads_where_the_host_gives_layers_their_weights_late(look, monkeypatch):
    import comfy.memory_management

    prompt = film()
    prompt["20"] = graphs.node(
        "CLIPVisionEncode", clip_vision=["12", 0], image=["11", 0], crop="none"
    )
    before = look(prompt, out=["20", 0])[0].penultimate_hidden_states
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    after = look(prompt, out=["20", 0])[0].penultimate_hidden_states
    assert torch.equal(before, after)


def test_the_host_can_build_the_patcher_again(look):
    import comfy.model_patcher

    (encoder,) = look(film(), encoder=["12", 0])
    make, arguments = encoder.patcher.cached_patcher_init
    with torch.inference_mode():
        again = make(*arguments, disable_dynamic=True)
    assert type(again) is comfy.model_patcher.ModelPatcher
    before, after = encoder.get_sd(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
