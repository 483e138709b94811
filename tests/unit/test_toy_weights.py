"""The toy set: published layouts, equal numbers in all of them, and films that obey the prompt."""

import json
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from skyreels_model import checkpoint
from skyreels_model.config import ModelConfig
from skyreels_model.text_encoder import to_original_names
from skyreels_model.tokenizer import UNK_ID, Tokenizer
from toy import films, measure, random_weights
from toy.world import captions, render

REPACKED_TEXT_ENCODER = films.TEXT_ENCODER.with_name("umt5_xxl_fp16.safetensors")
TOY = ModelConfig(dim=128, ffn_dim=512, num_heads=1, num_layers=4, text_dim=64, fps_embedding=True)


@pytest.fixture(scope="module")
def toy():
    """On one thread: beside another busy process, more make films this small 20 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield films.ToySet.load()
    torch.set_num_threads(threads)


def test_transformer_has_the_published_names_and_numbers_of_fp16():
    tensors = load_file(films.TRANSFORMER)
    assert ModelConfig.from_state_dict(tensors) == TOY
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == random_weights.dit_shapes(TOY)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_transformer_metadata_tells_comfyui_what_it_cannot_detect():
    with safe_open(films.TRANSFORMER, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["config"]) == {"transformer": {"text_dim": 64}}


def test_config_json_agrees_with_the_tensors():
    config = json.loads(films.TRANSFORMER.with_name("config.json").read_text())
    same = ("model_type", "dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
    assert {name: config[name] for name in same} == {name: getattr(TOY, name) for name in same}
    assert config["inject_sample_info"] is True and config["text_len"] == 512


def test_vae_has_the_published_names():
    tensors = checkpoint.read(films.VAE).tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == random_weights.vae_shapes(8)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


@pytest.mark.parametrize("path", [films.VAE, films.TEXT_ENCODER], ids=lambda path: path.name)
def test_pth_files_are_zips_without_code(path):
    assert zipfile.is_zipfile(path)
    tensors = torch.load(path, weights_only=True)
    assert type(tensors) is dict and path.stat().st_size < 2**21
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()) < 2**21


def test_text_encoder_files_hold_equal_numbers():
    original = checkpoint.read(films.TEXT_ENCODER).tensors
    repacked = load_file(REPACKED_TEXT_ENCODER)
    assert "shared.weight" in repacked
    pieces = bytes(repacked["spiece_model"].tolist())
    assert pieces == (films.TOKENIZER / "spiece.model").read_bytes()
    renamed = to_original_names(repacked)
    assert renamed.keys() == original.keys()
    assert all(torch.equal(renamed[name], value) for name, value in original.items())


def test_tokenizer_gives_the_ids_of_transformers_and_knows_every_word():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Tokenizer(str(films.TOKENIZER / "spiece.model"), extra_ids=0)
    ours = Tokenizer.from_folder(films.TOKENIZER)
    for caption in captions():
        assert theirs(caption).input_ids == ours.encode(caption)
        assert UNK_ID not in ours.encode(caption)


def test_text_encoder_agrees_with_transformers(toy):
    transformers = pytest.importorskip("transformers")
    config = transformers.UMT5Config(
        vocab_size=toy.text_encoder.config.vocab,
        d_model=64,
        d_kv=64,
        d_ff=128,
        num_heads=2,
        num_layers=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
    )
    weights = load_file(REPACKED_TEXT_ENCODER)
    del weights["spiece_model"]
    theirs = transformers.UMT5EncoderModel(config).eval()
    unloaded = theirs.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    assert set(unloaded.missing_keys) <= {"encoder.embed_tokens.weight"}
    assert not unloaded.unexpected_keys
    ids, mask = toy.tokenizer.tokenize(captions()[:3])
    with torch.inference_mode():
        expected = theirs(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        assert torch.allclose(toy.encode(captions()[:3]), expected, atol=1e-5)


def test_vae_keeps_what_the_world_shows(toy):
    with torch.inference_mode():
        for caption in captions()[::7]:
            look = measure.parse_caption(caption)
            frames = render(look.colour, look.background, look.direction, 17)
            x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] * 2 - 1  # (1, 3, T, H, W)
            seen = (toy.vae.decode(toy.vae.encode(x))[0].permute(1, 2, 3, 0) + 1) / 2
            assert measure.scores(seen.numpy(), caption, [(0, 17)])[0].ok, caption
            moved = measure.centroid_track(seen.numpy()) - measure.centroid_track(frames)
            assert abs(moved).max() < 1.0  # px
            assert ((seen.numpy() - frames) ** 2).mean() < 10**-2.5  # 25 dB


@pytest.mark.parametrize(
    "caption",
    [
        "a red circle moving right on a black background",
        "a green circle moving up on a white background",
        "a yellow circle moving down on a grey background",
    ],
)
def test_asynchronous_window_shows_the_prompt(toy, caption):
    plan = films.toy_plan()
    [score] = measure.scores(toy.film(caption, plan, seed=1), caption, [(0, 33)])
    assert score.ok, score
    assert score.speed == pytest.approx(0.75, abs=0.2)


def test_long_film_keeps_the_prompt_in_each_window(toy):
    caption = "a blue circle moving left on a grey background"
    plan = films.toy_plan(windows=3)
    assert plan.num_windows == 3 and plan.prefix_noise == 20
    frames = toy.film(caption, plan, seed=2)
    spans = measure.window_spans(len(frames), plan.window, plan.overlap)
    results = measure.scores(frames, caption, spans)
    assert len(results) == 3 and all(score.ok for score in results), results
    borders = [start for start, _ in spans[1:]]
    assert all(
        j.at_border < 1.5 for j in measure.seam_jumps(measure.centroid_track(frames), borders)
    )
