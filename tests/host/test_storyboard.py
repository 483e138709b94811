"""Storyboards in the host: shots with prompts, lengths, seeds and models of their own."""

import copy
import functools

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools.prompt import InvalidPrompt
from skyreels_model.grid import latent_length
from toy.toyset import transformer_path

pytestmark = pytest.mark.usefixtures("kept_loaders")

OTHER = "a red square moving right on a black background"
RANDOM = "random.safetensors"
# The least that the model takes: here it does not matter what a film shows.
SMALL = {"width": 16, "height": 16}


def with_shots(*shots, **changes):
    """The film with a chain of Storyboard nodes from "20" on; each shot: {seconds, prompt, …}."""
    prompt = graphs.film(frames=5, **SMALL, **changes)
    for number, shot in enumerate(shots):
        previous = {"previous": [str(19 + number), 0]} if number else {}
        prompt[str(20 + number)] = graphs.node(
            "SkyReelsV2Storyboard", clip=["2", 0], **{"prompt": graphs.PROMPT, **shot}, **previous
        )
    prompt["6"]["inputs"]["storyboard"] = [str(19 + len(shots)), 0]
    return prompt


def seconds(frames):
    return frames / 24


@pytest.fixture
def make(look):
    """`make(*shots)` -> (latents, frames)"""

    def run(*shots, **changes):
        prompt = with_shots(*shots, **changes)
        latent, frames = look(prompt, latent=["6", 0], frames=["7", 0])
        return latent["samples"], frames

    return run


@pytest.fixture
def sample(look):
    """`sample(*shots)` -> the latents alone."""

    def run(*shots, **changes):
        return look(with_shots(*shots, **changes), latent=["6", 0])[0]["samples"]

    return run


@pytest.fixture(scope="module")
def alone(look):
    """`alone(history)` -> the first shot as a film of its own, latents and frames, made once."""

    @functools.cache
    def run(history):
        prompt = graphs.film(frames=30, history=history, ar_step=1, **SMALL)
        latent, frames = look(prompt, latent=["6", 0], frames=["7", 0])
        return latent["samples"], frames

    return run


FIRST = {"seconds": seconds(30)}
SECOND = {"seconds": seconds(22), "prompt": OTHER}
VARIANTS = {
    "continue": ({}, latent_length(52)),
    "cut": ({"transition": "cut"}, latent_length(30) + latent_length(22)),
    "ease": ({"ease": 12}, latent_length(52)),
    "own seed": ({"seed": 7}, latent_length(52)),
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("history", ["pixels", "latents", "picture+latents"])
def test_first_shot_is_the_film_of_its_prompt_alone(alone, make, variant, history):
    change, latents = VARIANTS[variant]
    single, film = alone(history)
    samples, frames = make(FIRST, {**SECOND, **change}, history=history, ar_step=1)
    assert samples.shape[2] == latents and frames.shape == (52, 16, 16, 3)
    assert torch.equal(samples[:, :, : latent_length(30)], single)
    assert torch.equal(frames[:30], film)


def test_each_setting_of_a_shot_changes_that_shot_alone(sample):
    plain = sample(FIRST, SECOND)
    border = latent_length(30)
    for change in ({"prompt": graphs.PROMPT}, {"seed": 7}, {"ease": 12}):
        samples = sample(FIRST, {**SECOND, **change})
        assert torch.equal(samples[:, :, :border], plain[:, :, :border])
        assert not torch.equal(samples[:, :, border:], plain[:, :, border:])
    # The sampler's own seed, by name.
    same = sample(FIRST, {**SECOND, "seed": 1})
    assert torch.equal(same, plain)


def test_a_shot_that_continues_is_given_what_was_before_and_a_cut_is_not(sample):
    for transition, felt in (("continue", True), ("cut", False)):
        second = {**SECOND, "transition": transition}
        made = [sample({**FIRST, "seed": seed}, {**second, "seed": 1}) for seed in (1, 2)]
        begin = made[0].shape[2] - (latent_length(22) if transition == "cut" else 5)
        assert not torch.equal(made[0][:, :, :begin], made[1][:, :, :begin])
        assert torch.equal(made[0][:, :, begin:], made[1][:, :, begin:]) != felt


def test_ease_goes_from_the_prompt_before_to_its_own(sample):
    border = latent_length(30)

    def shot(prompt, ease):
        return sample(FIRST, {**SECOND, "prompt": prompt, "ease": ease})[:, :, border:]

    same, other = shot(graphs.PROMPT, 0), shot(OTHER, 0)
    # Between a prompt and itself there is nothing to fade; but alone it is computed in a batch of
    # one, which rounds otherwise than beside the negative one.
    assert float((shot(graphs.PROMPT, 12) - same).norm()) < 1e-4 * float(same.norm())
    distances = [float((shot(OTHER, ease) - same).norm()) for ease in (1000, 60, 12)]
    assert distances == sorted(distances) and distances[0] < 0.1 * float((other - same).norm())


@pytest.fixture(scope="module")
def random_model(models_folder):
    from skyreels_model.config import ModelConfig
    from toy import random_weights

    config = ModelConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, text_dim=64)
    random_weights.write_dit(models_folder / "diffusion_models" / RANDOM, config)
    return RANDOM


def test_a_shot_with_a_model_of_its_own(look, random_model):
    def run(model_name):
        prompt = with_shots(FIRST, SECOND)
        prompt["30"] = copy.deepcopy(prompt["1"])
        prompt["30"]["inputs"]["model_name"] = model_name
        prompt["21"]["inputs"]["model"] = ["30", 0]
        return look(prompt, latent=["6", 0])[0]["samples"]

    plain = look(with_shots(FIRST, SECOND), latent=["6", 0])[0]["samples"]
    border = latent_length(30)
    assert torch.equal(run(graphs.TOY["model"]), plain)
    other = run(random_model)
    assert torch.equal(other[:, :, :border], plain[:, :, :border])
    assert not torch.equal(other[:, :, border:], plain[:, :, border:])


def test_text_is_the_same_film_as_the_chain(look, make):
    ease = {"ease": 6}
    shots = (
        {"seconds": 1.0, **ease},
        {"seconds": 0.7, "prompt": OTHER, **ease},
        {"seconds": 0.8, "transition": "cut", **ease},
    )
    _, chained = make(*shots)
    text = f"0s: {graphs.PROMPT}\n1s: {OTHER} / 1.7s cut: {graphs.PROMPT}"
    (frames,) = look(with_text(text, 2.5, **ease), frames=["7", 0])
    assert len(frames) == 60 and torch.equal(frames, chained)


@pytest.fixture(scope="module")
def lora(models_folder):
    """The name of a LoRA file for the toy model."""
    width = load_file(transformer_path())["blocks.0.self_attn.q.weight"].shape[0]
    draw = torch.Generator().manual_seed(3)
    parts = {
        f"blocks.{block}.self_attn.q.lora_{name}.weight": 0.3 * torch.randn(shape, generator=draw)
        for block in (0, 1)
        for name, shape in (("A", (2, width)), ("B", (width, 2)))
    }
    save_file(parts, models_folder / "loras" / "shots.safetensors")
    return "shots.safetensors"


def with_text(text, seconds, **inputs):
    prompt = graphs.film(frames=5, **SMALL)
    prompt["20"] = graphs.node(
        "SkyReelsV2StoryboardText", clip=["2", 0], text=text, seconds=seconds, **inputs
    )
    prompt["6"]["inputs"]["storyboard"] = ["20", 0]
    return prompt


def test_a_shot_has_the_lora_at_its_strength(look, lora):
    """As a chain in which each shot has a model of its own, with that LoRA put on it."""
    strengths = {1.0: "30", -0.5: "31"}
    chain = with_shots(
        *({"seconds": 0.5, "model": [name, 0]} for name in strengths.values()), {"seconds": 0.5}
    )
    for strength, name in strengths.items():
        chain[name] = graphs.node(
            "SkyReelsV2LoraLoader", model=["1", 0], lora_name=lora, strength=strength
        )
    (expected,) = look(chain, latent=["6", 0])
    marks = ("0s", "0.5s lora -0.5", "1s lora 0")
    text = "\n".join(f"{mark}: {graphs.PROMPT}" for mark in marks)
    (told,) = look(with_text(text, 1.5, lora_name=lora), latent=["6", 0])
    (without,) = look(with_shots(*[{"seconds": 0.5}] * 3), latent=["6", 0])
    assert torch.equal(told["samples"], expected["samples"])
    assert not torch.equal(told["samples"], without["samples"])


@pytest.mark.parametrize(
    ("mark", "name", "says"),
    [
        ("lora 0.5", "none", "lora_name is none, and text has lora 0.5 in shot 1"),
        ("lora 50", "shots.safetensors", "lora of shot 1 is 50; it must be -20 to 20; nearest: 20"),
        ("lora 1", "lost.safetensors", "lora_name is 'lost.safetensors'; it must be one of"),
    ],
)
def test_a_strength_without_its_lora_is_refused(run_prompt, lora, mark, name, says):
    prompt = with_text(f"0s {mark}: {graphs.PROMPT}", 1.5, lora_name=name)
    prompt["60"] = graphs.node("PreviewImage", images=["7", 0])
    try:
        told = run_prompt(prompt).describe()
    except InvalidPrompt as error:
        told = str(error)
    assert says in told


def test_length_is_that_of_all_shots_and_can_be_connected(look):
    prompt = with_shots({"seconds": 0.5}, {"seconds": 0.8}, {"seconds": 0.3, "transition": "cut"})
    frames, length = look(prompt, frames=["7", 0], length=["22", 1])
    assert length == pytest.approx(1.6) and len(frames) == 38
    prompt["5"]["inputs"]["seconds"] = ["22", 1]
    planned, again = look(prompt, planned=["5", 3], again=["7", 0])
    assert planned == 38 and torch.equal(again, frames)


def test_shots_shorter_than_the_overlap(make):
    shots = [{"seconds": seconds(4), "prompt": one} for one in (graphs.PROMPT, OTHER)] * 2
    samples, frames = make(*shots, {"seconds": seconds(21)})
    assert len(frames) == 37 and samples.shape[2] == latent_length(37)


def test_pictures_stand_at_their_seconds_of_the_whole_film(look):
    """A start, an end, and a key picture in the shot after a cut."""

    def prompt(**inputs):
        graph = with_shots(FIRST, {**SECOND, "transition": "cut"}, seconds=seconds(52))
        graph["40"] = graphs.node("EmptyImage", width=40, height=60, batch_size=1, color=0xFF8000)
        graph["41"] = graphs.node("SkyReelsV2Frames", schedule=["5", 0], **inputs)
        graph["6"]["inputs"]["frames"] = ["41", 0]
        return graph

    plain = look(with_shots(FIRST, {**SECOND, "transition": "cut"}), f=["7", 0])[0]
    for inputs, changed in (
        ({"key_images": ["40", 0], "key_seconds": "2"}, range(30, 52)),
        ({"end_image": ["40", 0]}, range(30, 52)),
        ({"start_image": ["40", 0]}, range(30)),
    ):
        (film,) = look(prompt(**inputs), film=["7", 0])
        differs = {i for i in range(52) if not torch.equal(film[i], plain[i])}
        assert len(film) == 52 and differs and differs <= set(changed)


def test_core_vae_decode_shows_one_shot_as_ours(look):
    prompt = with_shots({"seconds": seconds(15)})
    prompt["30"] = graphs.node("VAEDecode", samples=["6", 0], vae=["3", 0])
    ours, core = look(prompt, ours=["7", 0], core=["30", 0])
    assert len(ours) == 15 and (ours - core[:15]).abs().max() < 1e-4


SLIDING = {"sliding": True, "ar_step": 2, "window": 17, "steps": 4}


def test_one_sequence_gives_each_shot_its_prompt_and_seed(make, sample):
    """What is long before a shot does not know of it; a cut begins a sequence of its own."""
    third = {**FIRST, "transition": "cut"}
    base, frames = make(FIRST, SECOND, third, **SLIDING)
    assert len(frames) == 82 and base.shape[2] == latent_length(52) + latent_length(30)
    begin, cut = latent_length(30), latent_length(52)
    for change in ({"prompt": graphs.PROMPT}, {"seed": 7}, {"ease": 12}):
        other = sample(FIRST, {**SECOND, **change}, third, **SLIDING)
        apart = (other - base).abs().amax(dim=(0, 1, 3, 4))
        assert apart[: begin - 4].max() == 0 and apart[cut:].max() == 0
        assert apart[begin:cut].min() > 0, change


def test_one_sequence_of_equal_shots_is_the_sequence_of_their_prompt(look, sample):
    (single,) = look(graphs.film(frames=52, **SMALL, **SLIDING), latent=["6", 0])
    samples = sample(FIRST, {**SECOND, "prompt": graphs.PROMPT, "ease": 20}, **SLIDING)
    difference = (samples - single["samples"]).norm() / samples.norm()
    assert float(difference) < 1e-4


def test_models_of_shots_are_refused_in_one_sequence(run_prompt, random_model):
    prompt = with_shots(FIRST, {**SECOND, "model": ["50", 0]}, **SLIDING)
    prompt["50"] = graphs.node(
        "SkyReelsV2ModelLoader",
        model_name=RANDOM, weight_dtype="default", attention="auto", variant="auto",
    )  # fmt: skip
    prompt["60"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success and "turn sliding off" in result.describe()


def test_a_fade_costs_one_forward_more_and_not_a_whole_guided_one(sample, monkeypatch):
    import comfy.samplers

    calls = []
    whole = comfy.samplers.calc_cond_batch

    def counted(model, conds, *args):
        calls.append(sum(cond is not None for cond in conds))
        return whole(model, conds, *args)

    monkeypatch.setattr(comfy.samplers, "calc_cond_batch", counted)
    sample({"seconds": seconds(5)}, {"seconds": seconds(12), "ease": 12, "prompt": OTHER})
    assert sorted(set(calls)) == [1, 2] and calls.count(1) == calls.count(2) / 2
