"""What rides with a LATENT is true of its latents, or is not used, and that is said."""

import importlib
import logging

import graphs
import pytest
import torch

pytestmark = pytest.mark.usefixtures("kept_loaders")

FRAMES = 33


@pytest.fixture(scope="module")
def film(look):
    """A film of three windows, its frames and the VAE."""
    return look(graphs.film(frames=FRAMES), latent=["6", 0], frames=["7", 0], vae=["3", 0])


@pytest.fixture(scope="module")
def part(film):
    """`part(name)`: a module of nodes/host as the host has loaded it."""
    package = type(film[2]).__module__.rsplit(".", 2)[0]
    return lambda name: importlib.import_module(f"{package}.{name}")


@pytest.fixture
def decode(film, part, caplog):
    """`decode(latent)` -> frames, and the warnings."""

    def run(latent):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "skyreels_v2"), torch.inference_mode():
            frames = part("film.decoding").decode_film(film[2], latent)
        return frames, caplog.text

    return run


def test_a_film_as_it_was_made(film, decode):
    latent, frames, _ = film
    found, warnings = decode(latent)
    assert len(frames) == FRAMES and torch.equal(found, frames) and not warnings
    # Whatever copies the latents without a change of a number.
    found, _ = decode({**latent, "samples": latent["samples"].clone().double()})
    assert torch.equal(found, frames)


def test_a_second_pass_of_the_same_size_is_one_window(look, caplog):
    prompt = graphs.film(frames=FRAMES)
    prompt["8"] = graphs.node(
        "KSampler", model=["1", 0], positive=["4", 0], negative=["4", 1], latent_image=["6", 0],
        seed=2, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple", denoise=0.5,
    )  # fmt: skip
    prompt["7"]["inputs"]["samples"] = ["8", 0]
    prompt["9"] = graphs.node("VAEDecode", samples=["8", 0], vae=["3", 0])
    with caplog.at_level(logging.WARNING, "skyreels_v2"):
        latent, ours, core = look(prompt, latent=["8", 0], ours=["7", 0], core=["9", 0])
    assert "skyreels_v2_film" in latent and torch.equal(ours, core)
    assert caplog.text.count("changed by another node") == 1


def test_one_changed_number_is_a_change(film, decode):
    latent, frames, _ = film
    changed = latent["samples"].clone()
    changed[0, 3, -1, 1, 1] += 0.5
    found, warnings = decode({**latent, "samples": changed})
    assert "changed by another node" in warnings
    assert torch.equal(found, decode({"samples": changed})[0])
    assert not torch.equal(found[17:25], frames[17:25])  # before the change, after a seam


def test_color_anchor_binds_anew(film, part, decode):
    latent, frames, _ = film
    held, _ = part("film.drift").anchor_film(latent, 1.0, None)
    assert not torch.equal(held["samples"], latent["samples"])
    found, warnings = decode(held)
    assert len(found) == FRAMES and not warnings
    assert torch.equal(found[:17], frames[:17]) and not torch.equal(found, frames)


def test_a_film_before_is_not_put_before_other_latents(film, part, decode):
    latent, frames, _ = film
    import dataclasses

    record = dataclasses.replace(latent["skyreels_v2_film"], before=torch.zeros(5, 32, 32, 3))
    longer, _ = decode({**latent, "skyreels_v2_film": record})
    assert len(longer) == FRAMES + 5 and not longer[:5].any()
    found, warnings = decode({"samples": latent["samples"] * 0.9, "skyreels_v2_film": record})
    assert found[:5].any() and "the clips before" in warnings


def test_save_latent_and_load_latent_lose_the_record_and_that_is_said(film, decode, part):
    """ComfyUI's Save Latent keeps `samples` alone; what else a LATENT holds is not in the file."""
    import nodes

    saved = nodes.SaveLatent().save(film[0], "latents/record")["ui"]["latents"][0]
    (loaded,) = nodes.LoadLatent().load(f"{saved['subfolder']}/{saved['filename']} [output]")
    assert set(loaded) == {"samples"} and torch.equal(loaded["samples"], film[0]["samples"])
    _, warnings = decode(loaded)
    assert "no record of its windows" in warnings and "Save Latent" in warnings
    _, warnings = decode({"samples": loaded["samples"][:, :, :1]})
    assert not warnings  # an image has no seams to lose


@pytest.mark.parametrize("frames", [1, 18])
def test_a_second_pass_over_encoded_frames_keeps_their_number(film, part, decode, frames):
    """What follows from the shape alone stays true whatever the content."""
    pixels = torch.rand(frames, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        latent = part("film.encoding").encode_film(film[2], pixels)
    found, warnings = decode({**latent, "samples": latent["samples"] * 0.9})
    assert len(found) == frames and not warnings
