"""SkyReels-V2 Encode in the host: core's latents, and as many frames as were given."""

import graphs
import pytest
import torch

from skyreels_model.grid import latent_length

pytestmark = pytest.mark.usefixtures("kept_loaders")


def graph(width=32, height=32, frames=1):
    """`frames` of noise "14", encoded by our node "50" and by core's "51", and decoded "52"."""
    prompt = {"3": graphs.film()["3"]}
    prompt["13"] = graphs.node(
        "EmptyImage", width=width, height=height, batch_size=frames, color=0x804020
    )
    prompt["14"] = graphs.node("ImageAddNoise", image=["13", 0], seed=4, strength=0.2)
    prompt["50"] = graphs.node("SkyReelsV2Encode", pixels=["14", 0], vae=["3", 0])
    prompt["51"] = graphs.node("VAEEncode", pixels=["14", 0], vae=["3", 0])
    prompt["52"] = graphs.node("SkyReelsV2Decode", samples=["50", 0], vae=["3", 0])
    return prompt


@pytest.mark.parametrize("frames", [1, 5, 18, 20])
def test_encode_gives_back_as_many_frames_and_is_cores_encoding(look, frames):
    ours, core, film = look(graph(frames=frames), ours=["50", 0], core=["51", 0], film=["52", 0])
    whole = core["samples"].shape[2]
    assert torch.allclose(ours["samples"][:, :, :whole], core["samples"], atol=1e-4)
    assert ours["samples"].shape[2] == latent_length(frames) and len(film) == frames


def test_encode_names_the_nearest_size(run_prompt):
    prompt = graph(width=32, height=50)
    prompt["60"] = graphs.node("PreviewImage", images=["52", 0])
    result = run_prompt(prompt)
    assert not result.success and "height 50" in result.describe() and "48" in result.describe()
