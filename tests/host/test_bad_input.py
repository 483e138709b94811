"""Wrong input is told before work starts, in the user's terms; and the next run works."""

import logging
import pickle
import sys

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools.prompt import InvalidPrompt
from toy.toyset import TEXT_ENCODER, VAE, transformer_path

pytestmark = pytest.mark.usefixtures("kept_loaders")

LOADERS = {
    "diffusion_models": "1",
    "text_encoders": "2",
    "vae": "3",
}
SPIECE = "google/umt5-xxl/spiece.model"
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


@pytest.fixture(scope="module")
def seen():
    """The tests after which a film was made."""
    return set()


@pytest.fixture(autouse=True)
def still_usable(look, request, seen):
    """Whatever a test does to the host, a film can be made after it; once for each test's kind."""
    yield
    if request.function not in seen:
        seen.add(request.function)
        (frames,) = look(graphs.film(frames=5, steps=1), frames=["7", 0])
        assert len(frames) == 5


SCHEDULES = [
    ({"width": 40}, ("width", "40", "multiple of 16", "nearest")),
    ({"height": 20}, ("height", "20", "multiple of 16", "16")),
    ({"overlap": 17}, ("overlap", "17", "window", "13")),
    ({"overlap": 8}, ("overlap", "8", "4k + 1", "9")),
    ({"window": 18}, ("window", "18", "4k + 1", "17")),
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
    ("text_encoders", transformer_path(), "a diffusion transformer"),
    ("text_encoders", VAE, "a Wan 2.1 VAE"),
    ("vae", transformer_path(), "a diffusion transformer"),
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
    file.write_bytes(transformer_path().read_bytes()[:keep])
    text = refusal(with_file("diffusion_models", file.name))
    assert "truncated.safetensors" in text and "truncated or still being downloaded" in text


def test_corrupt_header_and_corrupt_pth(refusal, models_folder):
    data = bytearray(transformer_path().read_bytes())
    data[8:40] = b"\xff" * 32
    (models_folder / "diffusion_models" / "corrupt.safetensors").write_bytes(data)
    assert "corrupt.safetensors" in refusal(with_file("diffusion_models", "corrupt.safetensors"))
    (models_folder / "vae" / "cut.pth").write_bytes(VAE.read_bytes()[:100_000])
    assert "cut.pth" in refusal(with_file("vae", "cut.pth"))


def test_missing_shard_is_named_and_whole_set_loads(refusal, look, models_folder):
    state = load_file(transformer_path())
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
    state = load_file(transformer_path())
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
    assert "prompt: the text is " in text and "512" in text and "circle" in text


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
    (tokenizer / "spiece.model").write_bytes((TEXT_ENCODER.parent / SPIECE).read_bytes())
    text = refusal(with_file("text_encoders", "wide.safetensors"))
    assert "positive" in text and "96" in text and "64" in text


def test_text_encoder_without_a_tokenizer(refusal, models_folder):
    folder = models_folder / "text_encoders" / "alone"
    folder.mkdir(exist_ok=True)
    (folder / "encoder.pth").write_bytes(TEXT_ENCODER.read_bytes())
    text = refusal(with_file("text_encoders", "alone/encoder.pth"))
    assert "tokenizer" in text and "spiece.model" in text
    (folder / "spiece.model").write_bytes(b"junk")
    text = refusal(with_file("text_encoders", "alone/encoder.pth"))
    assert f"its tokenizer, {folder / 'spiece.model'}, cannot be used" in text


def test_no_tokenizer_is_looked_for_above_a_models_folder(host, tmp_path, monkeypatch):
    """A -Diffusers repository has it beside its folder text_encoder, which lies in a models one."""
    import folder_paths

    name = next(name for name in sys.modules if name.endswith("nodes.host.sockets.clip"))
    find, root = sys.modules[name].find_tokenizer, tmp_path / "text_encoders"
    for folder in (tmp_path / "tokenizer", root / "tokenizer"):
        folder.mkdir(parents=True)
        (folder / "spiece.model").write_bytes((TEXT_ENCODER.parent / SPIECE).read_bytes())
    assert find(root / "text_encoder" / "model.safetensors", {}).vocab_size
    (root / "tokenizer" / "spiece.model").unlink()
    assert find(root / "model.safetensors", {}).vocab_size
    known = folder_paths.folder_names_and_paths
    monkeypatch.setitem(known, "more_encoders", ([str(root)], set()))
    with pytest.raises(ValueError, match="no tokenizer inside and none beside it"):
        find(root / "model.safetensors", {})


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
    assert "history to latents" in text


def test_images_without_a_vae(refusal):
    prompt = with_images(start_image=["10", 0])
    del prompt["6"]["inputs"]["vae"]
    assert "vae is not connected; the images of frames" in refusal(prompt)


def with_images(frames=17, **inputs):
    """A film and its SkyReelsV2Frames "12"; "10" is one picture, "11" two, "13" a film of 8."""
    prompt = graphs.film(frames=frames)
    for number, size in (("10", 1), ("11", 2), ("13", 8)):
        prompt[number] = graphs.node(
            "EmptyImage", width=40, height=50, batch_size=size, color=8421504
        )
    prompt["12"] = graphs.node("SkyReelsV2Frames", schedule=["5", 0], **inputs)
    prompt["6"]["inputs"]["frames"] = ["12", 0]
    return prompt


ONE, TWO, FILM = ["10", 0], ["11", 0], ["13", 0]
IMAGES = [
    ({}, ("nothing is connected",)),
    ({"key_seconds": "0.5"}, ("nothing is connected",)),
    ({"start_image": ONE, "video": FILM}, ("start_image and video", "disconnect one")),
    ({"start_image": ONE, "end_image": ONE, "loop": True}, ("loop is on and end_image",)),
    ({"end_image": ONE, "loop": True}, ("loop is on and end_image",)),
    ({"key_images": ONE, "key_seconds": "0.5", "loop": True}, ("loop is on without a start",)),
    ({"video": FILM, "loop": True}, ("loop is on without a start_image",)),
    ({"start_image": TWO}, ("start_image is a batch of 2", "must be 1")),
    ({"end_image": TWO}, ("end_image is a batch of 2", "must be 1")),
    ({"key_images": TWO}, ("key_seconds has 0 times and key_images 2",)),
    ({"key_images": TWO, "key_seconds": "0.5"}, ("key_seconds has 1 times and key_images 2",)),
    ({"start_image": ONE, "key_seconds": "0.5"}, ("has 1 times and key_images 0",)),
    ({"key_images": ONE, "key_seconds": "half"}, ("key_seconds is 'half'", "numbers", "2, 4.5")),
    ({"key_images": ONE, "key_seconds": "nan"}, ("key_seconds is 'nan'", "numbers")),
    ({"key_images": ONE, "key_seconds": "inf"}, ("key_seconds is 'inf'", "numbers")),
    ({"key_images": ONE, "key_seconds": "0.8"}, ("key frame is at frame 19", "frames 0 to 16")),
    ({"key_images": ONE, "key_seconds": "-1"}, ("key frame is at frame -24", "frames 0 to 16")),
    ({"key_images": ONE, "key_seconds": "0"}, ("key frame is at frame 0", "frames 1 to 16")),
    ({"key_images": TWO, "key_seconds": "0.5, 0.52"}, ("frames 12 and 12", "4 frames (0.17 s)")),
    ({"key_images": TWO, "key_seconds": "0.3 0.35"}, ("frames 7 and 8", "same four", "0.17 s")),
    ({"key_images": TWO, "key_seconds": "0.5, 0.65"}, ("frames 12 and 16", "6 at the film's end")),
    ({"video": FILM}, ("video has 8 frames", "last 9", "overlap of at most 5")),
]


@pytest.mark.parametrize(("inputs", "parts"), IMAGES)
def test_images_that_contradict_each_other(refusal, inputs, parts):
    text = refusal(with_images(**inputs))
    assert all(part in text for part in parts), text
    assert "SkyReelsV2Frames" in text


def test_key_image_inside_the_given_film_and_a_film_that_is_all_given(refusal):
    prompt = with_images(video=["13", 0], key_images=["10", 0], key_seconds="0.2")
    prompt["13"]["inputs"]["batch_size"] = 20
    text = refusal(prompt)
    assert "key frame is at frame 5" in text and "frames 9 to 16" in text and "given" in text
    prompt = with_images(frames=9, video=["13", 0])
    prompt["13"]["inputs"]["batch_size"] = 20
    text = refusal(prompt)
    assert "9 frames are given at the start" in text and "first window has 9" in text
    text = refusal(with_images(frames=1, start_image=["10", 0]))
    assert "1 frames are given at the start" in text and "at least 4" in text


def with_shots(*seconds, **inputs):
    """A chain of storyboard nodes from "20" on."""
    prompt = graphs.film()
    for number, length in enumerate(seconds):
        previous = {"previous": [str(19 + number), 0]} if number else {}
        prompt[str(20 + number)] = graphs.node(
            "SkyReelsV2Storyboard", clip=["2", 0], prompt="a red circle", seconds=length, **previous
        )
    prompt["6"]["inputs"] |= {"storyboard": [str(19 + len(seconds)), 0], **inputs}
    return prompt


def test_a_shot_without_length_never_starts(refusal):
    for seconds in (0.0, -1.0):
        with pytest.raises(InvalidPrompt, match="seconds"):
            refusal(with_shots(seconds))


def test_shots_that_cannot_be(refusal):
    text = refusal(with_shots(0.25, 0.1))
    assert "shot 2 has 2 frames" in text and "at least 4" in text
    prompt = with_shots(0.5, 0.5)
    prompt["21"]["inputs"]["prompt"] = "red circle " * 400
    text = refusal(prompt)
    assert "prompt" in text and "512" in text and "SkyReelsV2Storyboard" in text
    prompt = with_shots(0.5, 1.2)
    del prompt["6"]["inputs"]["vae"]
    assert "vae is not connected; a film of 41 frames" in refusal(prompt)


def test_pictures_of_another_film_than_the_storyboards(refusal):
    prompt = with_images(key_images=["10", 0], key_seconds="0.6")
    shots = with_shots(0.25, 0.25)
    prompt["6"]["inputs"]["storyboard"] = shots["6"]["inputs"]["storyboard"]
    prompt |= {number: shots[number] for number in ("20", "21")}
    text = refusal(prompt)
    assert "key frame is at frame 14" in text and "frames 0 to 11" in text


TEXTS = [
    ("a red circle", ("text begins with 'a red circle'", "0s: a street")),
    ("2s: a red circle", ("text's first second is 2; it must be 0",)),
    ("0s: one\n0.8s: two\n0.5s: three", ("text has shot 2 at 0.8s, and shot 3 is at 0.5s",)),
    ("0s: one\n1s: two", ("text has shot 2 at 1s", "the film's end is at 1s")),
    ("0s: one / 0.5s cut: ", ("text has no prompt for shot 2, at 0.5s",)),
    ("0s: one / 0.5s: " + "red circle " * 400, ("text, shot 2: the text is ", "512")),
]


@pytest.mark.parametrize(("storyboard", "parts"), TEXTS)
def test_storyboard_texts_that_cannot_be(refusal, storyboard, parts):
    prompt = graphs.film()
    prompt["20"] = graphs.node(
        "SkyReelsV2StoryboardText", clip=["2", 0], text=storyboard, seconds=1.0
    )
    prompt["6"]["inputs"]["storyboard"] = ["20", 0]
    text = refusal(prompt)
    assert all(part in text for part in parts), text
    assert "SkyReelsV2StoryboardText" in text


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
