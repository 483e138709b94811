"""Decode, Encode and Color Anchor refuse what they cannot take, by the input's name."""

import importlib
import math

import graphs
import pytest
import torch
from safetensors.torch import save_file

from devtools.prompt import InvalidPrompt
from skyreels_model.files import checkpoint
from toy.toyset import VAE

pytestmark = pytest.mark.usefixtures("kept_loaders")

LATENTS, PIXELS = torch.zeros(1, 16, 2, 2, 2), torch.zeros(5, 16, 16, 3)


@pytest.fixture(scope="module")
def vae(look):
    return look({"3": graphs.film()["3"]}, vae=["3", 0])[0]


@pytest.fixture(scope="module")
def call(vae):
    """`call(node, first input, vae)`: a node's work without the node."""
    package = type(vae).__module__.rsplit(".", 2)[0]
    work = {
        "decode": ("film.decoding", "decode_film"),
        "encode": ("film.encoding", "encode_film"),
    }

    def run(node, given, vae=vae):
        module, name = work[node]
        with torch.inference_mode():
            return getattr(importlib.import_module(f"{package}.{module}"), name)(vae, given)

    run.anchor = importlib.import_module(f"{package}.film.drift").anchor_film
    return run


@pytest.fixture(scope="module")
def wide_vae(look, models_folder):
    """A Wan VAE whose decoder ends in 12 channels (four pixels each), through core's loader."""
    state = {k: v.float() for k, v in checkpoint.read(VAE).tensors.items()}
    for name in ("decoder.head.2.weight", "decoder.head.2.bias"):
        state[name] = torch.cat([state[name]] * 4)
    save_file(state, models_folder / "vae" / "wide.safetensors")
    return look({"3": graphs.node("VAELoader", vae_name="wide.safetensors")}, vae=["3", 0])[0]


class Other:
    """Something with a VAE's methods, and what the host says of a VAE."""

    def __init__(self, **said):
        vars(self).update(said)

    def decode(self, samples):
        raise AssertionError("decoded")

    def encode(self, pixels):
        raise AssertionError("encoded")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"latent_channels": 48}, "vae has 48 latent channels"),
        ({"latent_channels": 16, "latent_dim": 2}, "vae has 2 latent dimensions"),
        ({"output_channels": 4}, "vae has 4 channels of colour"),
        ({"upscale_index_formula": (8, 8, 8)}, r"vae has \(8, 8, 8\)"),
    ],
    ids=["latent channels", "of images", "colours", "strides"],
)
@pytest.mark.parametrize("node", ["decode", "encode"])
def test_another_models_vae(call, node, said, words):
    given = {"samples": LATENTS} if node == "decode" else PIXELS
    with pytest.raises(ValueError, match=words):
        call(node, given, Other(**said))


def nodes_with_a_vae(prompt):
    """A prompt in which one node after the other uses the VAE "3"."""
    image = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=0x804020)
    long = graphs.film(frames=33)  # continues a window through the VAE
    encode = graphs.node("SkyReelsV2Encode", pixels=["13", 0], vae=["3", 0])
    start = {"13": image, "14": graphs.node("SkyReelsV2Encode", pixels=["13", 0], vae=["8", 0])}
    return {
        "Decode": {**start, "8": prompt["3"], "7": {**long["7"], "inputs": {
            "samples": ["14", 0], "vae": ["3", 0]}}},
        "Encode": {"13": image, "7": encode},
        "Sampler": long,
        "Image to Video": {"13": image, "2": long["2"], "4": long["4"], "7": graphs.node(
            "SkyReelsV2ImageToVideo", positive=["4", 0], negative=["4", 1], vae=["3", 0],
            start_image=["13", 0], width=32, height=32, frames=17)},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Decode", "Encode", "Sampler", "Image to Video"])
def test_a_wan_vae_of_twelve_channels(run_prompt, wide_vae, name):
    prompt = dict(nodes_with_a_vae(graphs.film())[name])
    prompt["3"] = graphs.node("VAELoader", vae_name="wide.safetensors")
    prompt["9"] = graphs.node("PreviewAny", source=["6" if name == "Sampler" else "7", 0])
    if name == "Sampler":
        del prompt["7"]
    result = run_prompt(prompt)
    assert not result.success
    assert "vae has 12 output channels; it must be the Wan 2.1 VAE with 3" in result.describe()


def holed(x, value):
    x = x.clone()
    x.view(-1)[-1] = value
    return x


@pytest.mark.parametrize(
    ("latent", "words"),
    [
        ({}, "samples is a LATENT with nothing for samples"),
        ({"samples": None}, "samples is a LATENT with nothing for samples"),
        ({"samples": [1]}, "samples is a LATENT with a list for samples"),
        ({"samples": torch.zeros(1, 4, 8, 8)}, r"samples has shape \(1, 4, 8, 8\)"),
        ({"samples": LATENTS[:, :, :0]}, r"samples has shape \(1, 16, 0, 2, 2\), which is empty"),
        ({"samples": LATENTS[:0]}, r"samples has shape \(0, 16, 2, 2, 2\), which is empty"),
        ({"samples": LATENTS.int()}, "samples has numbers of type int32"),
        ({"samples": holed(LATENTS, math.nan)}, "samples has numbers in latent frame 1"),
        ({"samples": holed(LATENTS, math.inf)}, "samples has numbers in latent frame 1"),
    ],
    ids=str,
)
def test_wrong_latents(call, latent, words):
    with pytest.raises(ValueError, match=words):
        call("decode", latent)
    with pytest.raises(ValueError, match=words):
        call.anchor(latent, 1.0, None)
    with pytest.raises(ValueError, match=words.replace("samples", "reference", 1)):
        call.anchor({"samples": LATENTS}, 1.0, latent)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (PIXELS[:, :0], "pixels have height 0; .* nearest: 16"),
        (PIXELS[:, :, :9], "pixels have width 9; .* nearest: 16"),
        (holed(PIXELS, math.nan), "pixels has numbers in image 5"),
        (holed(PIXELS, -math.inf), "pixels has numbers in image 5"),
    ],
    ids=str,
)
def test_wrong_frames(call, pixels, words):
    with pytest.raises(ValueError, match=words):
        call("encode", pixels)


def test_grey_frames_and_frames_with_transparency_are_colours(call):
    grey = torch.rand(5, 16, 16, 1, generator=torch.Generator().manual_seed(0))
    colours = grey.expand(-1, -1, -1, 3)
    see_through = torch.cat([colours, torch.zeros_like(grey)], dim=3)
    found = [call("encode", pixels)["samples"] for pixels in (colours, grey, see_through)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("strength", [math.nan, 5e46, -0.1])
def test_strengths_of_the_color_anchor(run_prompt, strength):
    prompt = {
        "6": graphs.node("EmptyHunyuanLatentVideo", width=32, height=32, length=9, batch_size=1),
        "8": graphs.node("SkyReelsV2ColorAnchor", samples=["6", 0], strength=strength),
        "9": graphs.node("PreviewAny", source=["8", 2]),
    }
    try:
        result = run_prompt(prompt)
    except InvalidPrompt as refused:  # the host's own check of a widget's range
        assert "strength" in str(refused)
    else:
        assert not result.success and "strength" in result.describe()


def test_a_clip_is_no_vae(look):
    """It encodes and decodes, too."""
    import nodes

    (clip,) = look({"2": graphs.film()["2"]}, clip=["2", 0])
    decode = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2Decode"]
    with pytest.raises(ValueError, match="vae is of type .*; it must be a VAE"):
        decode.execute(samples={"samples": LATENTS}, vae=clip)
