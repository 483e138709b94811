"""Wrong input is told before work starts, in the user's terms; and the next run works."""

import logging
import pickle

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools.prompt import InvalidPrompt
from toy.films import TEXT_ENCODER, TRANSFORMER, VAE

LOADERS = {
    "diffusion_models": "1",
    "text_encoders": "2",
    "vae": "3",
}
NAME_INPUTS = {"1": "model_name", "2": "text_encoder_name", "3": "vae_name"}


@pytest.fixture
def refusal(run_prompt, monkeypatch):
    """`refusal(prompt)` -> the failure's text; no row may have been sampled before it."""

    def run(prompt, sampled=False):
        rows = []
        prompt["9"] = graphs.node("PreviewImage", images=["7", 0])

        def on_event(event, data):
            if event == "progress_state" and "6" in data["nodes"]:
                rows.append(data["nodes"]["6"]["value"])

        result = run_prompt(prompt, on_event)
        assert not result.success
        assert sampled or not any(rows), "work had begun"
        return result.describe()

    return run


@pytest.fixture(autouse=True)
def still_usable(look):
    """Whatever a test does to the host, a film can be made after it."""
    yield
    (frames,) = look(graphs.film(steps=1), frames=["7", 0])
    assert len(frames) == 17


SCHEDULES = [
    ({"frames": 96}, (": frames is 96;", "4k + 1", "97")),
    ({"width": 40}, ("width", "40", "multiple of 16", "nearest")),
    ({"height": 20}, ("height", "20", "multiple of 16", "16")),
    ({"overlap": 17}, ("overlap", "17", "window", "13")),
    ({"overlap": 8}, ("overlap", "8", "4k + 1", "9")),
    ({"window": 18}, ("window", "18", "4k + 1", "17")),
    ({"frames": 41, "block_size": 5}, (": frames is 41,", "11 latent", "5", "37")),
    ({"frames": 61, "window": 21, "block_size": 4}, ("window", "21", "6 latent", "4", "29")),
    ({"frames": 61, "window": 29, "overlap": 9, "block_size": 4}, ("overlap", "9", "3", "13")),
]


@pytest.mark.parametrize(("change", "parts"), SCHEDULES)
def test_schedule_says_the_rule_and_the_nearest_legal_value(refusal, change, parts):
    text = refusal(graphs.film(**change))
    assert all(part in text for part in parts), text
    assert "SkyReelsV2Schedule" in text


@pytest.mark.parametrize("change", [{"ar_step": -1}, {"prefix_noise": 61}, {"steps": 0}])
def test_out_of_range_numbers_never_start(refusal, change):
    with pytest.raises(InvalidPrompt, match=next(iter(change))):
        refusal(graphs.film(**change))


MIX_UPS = [
    ("diffusion_models", VAE, "a Wan 2.1 VAE"),
    ("diffusion_models", TEXT_ENCODER, "a text encoder"),
    ("text_encoders", TRANSFORMER, "a diffusion transformer"),
    ("text_encoders", VAE, "a Wan 2.1 VAE"),
    ("vae", TRANSFORMER, "a diffusion transformer"),
    ("vae", TEXT_ENCODER, "a text encoder"),
]


@pytest.mark.parametrize(("category", "file", "says"), MIX_UPS)
def test_a_file_in_the_wrong_loader_is_named(refusal, models_folder, category, file, says):
    (models_folder / category / f"mixed_up{file.suffix}").write_bytes(file.read_bytes())
    text = refusal(with_file(category, f"mixed_up{file.suffix}"))
    assert says in text and f"_name 'mixed_up{file.suffix}'" in text, text


def with_file(category, name):
    prompt = graphs.film()
    loader = LOADERS[category]
    prompt[loader]["inputs"][NAME_INPUTS[loader]] = name
    return prompt


@pytest.mark.parametrize("keep", [100, 5000, 1_000_000])
def test_truncated_safetensors(refusal, models_folder, keep):
    file = models_folder / "diffusion_models" / "truncated.safetensors"
    file.write_bytes(TRANSFORMER.read_bytes()[:keep])
    text = refusal(with_file("diffusion_models", file.name))
    assert "truncated.safetensors" in text and "truncated or still being downloaded" in text


def test_corrupt_header_and_corrupt_pth(refusal, models_folder):
    data = bytearray(TRANSFORMER.read_bytes())
    data[8:40] = b"\xff" * 32
    (models_folder / "diffusion_models" / "corrupt.safetensors").write_bytes(data)
    assert "corrupt.safetensors" in refusal(with_file("diffusion_models", "corrupt.safetensors"))
    (models_folder / "vae" / "cut.pth").write_bytes(VAE.read_bytes()[:100_000])
    assert "cut.pth" in refusal(with_file("vae", "cut.pth"))


def test_missing_shard_is_named_and_whole_set_loads(refusal, look, models_folder):
    state = load_file(TRANSFORMER)
    keys = sorted(state)
    folder = models_folder / "diffusion_models" / "sharded"
    folder.mkdir(exist_ok=True)
    for i in range(3):
        part = {k: state[k] for k in keys[i::3]}
        save_file(part, folder / f"model-{i + 1:05d}-of-00003.safetensors")
    first = "sharded/model-00001-of-00003.safetensors"
    (report,) = look(with_file("diffusion_models", first), report=["1", 1])
    assert "0 missing" in report
    (folder / "model-00002-of-00003.safetensors").unlink()
    text = refusal(with_file("diffusion_models", first))
    assert "model-00002-of-00003.safetensors" in text and "missing" in text


def test_missing_and_misshapen_weights_are_errors(refusal, models_folder):
    state = load_file(TRANSFORMER)
    folder = models_folder / "diffusion_models"
    save_file({k: v for k, v in state.items() if "3.cross_attn.k." not in k}, folder / "gap.sft")
    text = refusal(with_file("diffusion_models", "gap.sft"))
    assert "blocks.3.cross_attn.k." in text and "missing" in text
    state["blocks.1.ffn.2.bias"] = torch.zeros(7)
    save_file(state, folder / "shape.sft")
    text = refusal(with_file("diffusion_models", "shape.sft"))
    assert "blocks.1.ffn.2.bias" in text and "(7,)" in text and "(128,)" in text


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch SHOULD_NOT_EXIST",)


def test_pickle_with_code_is_refused_and_not_run(refusal, models_folder, monkeypatch):
    monkeypatch.chdir(models_folder)
    torch.save({"decoder.conv1.weight": Hostile()}, models_folder / "vae" / "hostile.pth")
    text = refusal(with_file("vae", "hostile.pth"))
    assert "hostile.pth" in text and "refused" in text
    (models_folder / "vae" / "bare.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    assert "bare.pth" in refusal(with_file("vae", "bare.pth"))
    assert not (models_folder / "SHOULD_NOT_EXIST").exists()


def test_path_outside_of_the_model_folders(refusal):
    with pytest.raises(InvalidPrompt, match="model_name"):
        refusal(with_file("diffusion_models", "../../../etc/passwd"))


def test_prompt_over_512_tokens_is_refused_with_what_would_be_cut(refusal):
    prompt = graphs.film()
    prompt["4"]["inputs"]["prompt"] = "red circle " * 400 + "the very end"
    text = refusal(prompt)
    assert "prompt" in text and "512" in text and "circle" in text


def test_empty_prompt_only_warns(look, caplog):
    prompt = graphs.film()
    prompt["4"]["inputs"]["prompt"] = "  "
    with caplog.at_level(logging.WARNING, "skyreels_v2"):
        (frames,) = look(prompt, frames=["7", 0])
    assert len(frames) == 17 and "prompt is empty" in caplog.text


def test_text_of_another_width(refusal, models_folder):
    from skyreels_model.text_encoder import UMT5Config
    from toy import random_weights

    file = models_folder / "text_encoders" / "wide.safetensors"
    config = UMT5Config(vocab=256, dim=96, dim_attn=96, dim_ffn=96, num_heads=2, num_layers=1)
    random_weights.write_umt5(file, config)
    tokenizer = models_folder / "text_encoders" / "google" / "umt5-xxl"
    tokenizer.mkdir(parents=True, exist_ok=True)
    published = TEXT_ENCODER.parent / "google" / "umt5-xxl" / "spiece.model"
    (tokenizer / "spiece.model").write_bytes(published.read_bytes())
    text = refusal(with_file("text_encoders", "wide.safetensors"))
    assert "positive" in text and "96" in text and "64" in text


def test_text_encoder_without_a_tokenizer(refusal, models_folder):
    folder = models_folder / "text_encoders" / "alone"
    folder.mkdir(exist_ok=True)
    (folder / "encoder.pth").write_bytes(TEXT_ENCODER.read_bytes())
    text = refusal(with_file("text_encoders", "alone/encoder.pth"))
    assert "tokenizer" in text and "spiece.model" in text


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (1, 16, 4, 4), (1, 48, 3, 4, 4)])
def test_latent_of_another_model(refusal, shape):
    prompt = graphs.film()
    if len(shape) == 4:
        node = "EmptyLatentImage" if shape[1] == 4 else "EmptySD3LatentImage"
        prompt["20"] = graphs.node(node, width=32, height=32, batch_size=1)
    else:
        prompt["20"] = graphs.node(
            "Wan22ImageToVideoLatent", vae=["3", 0], width=64, height=64, length=9, batch_size=1
        )
    prompt["7"]["inputs"]["samples"] = ["20", 0]
    text = refusal(prompt)
    assert "samples" in text and str(shape[1]) in text and "16" in text


def test_long_film_without_a_vae(refusal):
    prompt = graphs.film(frames=41)
    del prompt["6"]["inputs"]["vae"]
    text = refusal(prompt)
    assert "vae" in text and "41 frames" in text and "17 frames" in text


def test_image_to_video_model_without_an_image(refusal, models_folder):
    from skyreels_model.config import ModelConfig
    from toy import random_weights

    config = ModelConfig(
        model_type="i2v", dim=128, ffn_dim=64, num_heads=1, num_layers=1, in_dim=36, text_dim=64
    )
    file = models_folder / "diffusion_models" / "i2v.safetensors"
    random_weights.write_dit(file, config, torch.float16)
    text = refusal(with_file("diffusion_models", file.name))
    assert "36 channels" in text and "image" in text


def test_model_whose_sampling_is_not_flow_matching(refusal):
    prompt = graphs.film()
    prompt["20"] = graphs.node("ModelSamplingDiscrete", model=["1", 0], sampling="eps", zsnr=False)
    prompt["6"]["inputs"]["model"] = ["20", 0]
    assert "model's sampling has been changed" in refusal(prompt)
