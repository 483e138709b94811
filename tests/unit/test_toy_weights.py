"""The toy set's files: published layouts, equal numbers in all of them, a small total."""

import json
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from skyreels_model.config import ModelConfig
from skyreels_model.files import checkpoint
from skyreels_model.image_encoder import CLIPVision, CLIPVisionConfig
from skyreels_model.lora import match_lora
from skyreels_model.text_encoder import to_original_names
from skyreels_model.text_encoder.tokenizer import UNK_ID, Tokenizer
from toy import random_weights, toyset
from toy.training import causal, finetunes, image_tower, transformer
from toy.world import SCENES

REPACKED_TEXT_ENCODER = toyset.TEXT_ENCODER.with_name("umt5_xxl_fp16.safetensors")
CONFIGS = {"DF": transformer.DF, "T2V": finetunes.T2V, "I2V": finetunes.I2V}
CAPTIONS = [scene.caption for scene in SCENES]
BYTES = 15_500_000

each_transformer = pytest.mark.parametrize("kind", CONFIGS)


def test_the_whole_set_is_small():
    files = sorted(path for path in toyset.WEIGHTS.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in files) < BYTES


@each_transformer
def test_transformers_have_the_published_names_and_numbers_of_fp16(kind):
    tensors = load_file(toyset.transformer_path(kind))
    assert ModelConfig.from_state_dict(tensors) == CONFIGS[kind]
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == random_weights.dit_shapes(CONFIGS[kind])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_the_causal_lora_is_for_the_text_to_video_transformer_and_changes_it():
    file = checkpoint.read(toyset.CAUSAL_LORA)
    shapes = random_weights.dit_shapes(finetunes.T2V)
    lora = match_lora(file, {k.removesuffix(".weight"): s for k, s in shapes.items()})
    assert lora.matched == len(file.tensors) and lora.layers == 4 * len(causal.LAYERS)
    before, after = (
        toyset.ToySet.load(kind).transformer.state_dict() for kind in ("T2V", "causal")
    )
    layers = tuple(f".{name}.weight" for name in causal.LAYERS)
    assert all(torch.equal(before[k], after[k]) != k.endswith(layers) for k in before)


@each_transformer
def test_transformer_metadata_tells_comfyui_what_it_cannot_detect(kind):
    with safe_open(toyset.transformer_path(kind), "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert json.loads(metadata["config"]) == {"transformer": {"text_dim": 64}}


@each_transformer
def test_config_json_agrees_with_the_tensors(kind):
    config = json.loads(toyset.transformer_path(kind).with_name("config.json").read_text())
    expected = CONFIGS[kind]
    same = ("model_type", "dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")
    assert {name: config[name] for name in same} == {n: getattr(expected, n) for n in same}
    assert config["inject_sample_info"] is expected.fps_embedding and config["text_len"] == 512


def test_vae_has_the_published_names():
    tensors = checkpoint.read(toyset.VAE).tensors
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert shapes == random_weights.vae_shapes(8)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}


def test_image_encoder_has_the_published_names_and_width():
    tensors = checkpoint.read(toyset.IMAGE_ENCODER).tensors
    config = CLIPVisionConfig.from_state_dict(tensors)
    assert config == image_tower.TOWER and config.dim == 1280 and config.num_positions == 257
    layout = CLIPVision(config, device="meta").state_dict()
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in layout.items()}


@pytest.mark.parametrize(
    "path", [toyset.VAE, toyset.TEXT_ENCODER, toyset.IMAGE_ENCODER], ids=lambda path: path.name
)
def test_pth_files_are_zips_without_code(path):
    assert zipfile.is_zipfile(path)
    tensors = torch.load(path, weights_only=True)
    assert type(tensors) is dict and path.stat().st_size < 2**21
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()) < 2**21


def test_text_encoder_files_hold_equal_numbers():
    original = checkpoint.read(toyset.TEXT_ENCODER).tensors
    repacked = load_file(REPACKED_TEXT_ENCODER)
    assert "shared.weight" in repacked
    pieces = bytes(repacked["spiece_model"].tolist())
    assert pieces == (toyset.TOKENIZER / "spiece.model").read_bytes()
    renamed = to_original_names(repacked)
    assert renamed.keys() == original.keys()
    assert all(torch.equal(renamed[name], value) for name, value in original.items())


def test_tokenizer_gives_the_ids_of_transformers_and_knows_every_word():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.T5Tokenizer(str(toyset.TOKENIZER / "spiece.model"), extra_ids=0)
    ours = Tokenizer.from_folder(toyset.TOKENIZER)
    for caption in CAPTIONS:
        assert theirs(caption).input_ids == ours.encode(caption)
        assert UNK_ID not in ours.encode(caption)


def test_text_encoder_agrees_with_transformers():
    transformers = pytest.importorskip("transformers")
    toy = toyset.ToySet.load()
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
    ids, mask = toy.tokenizer.tokenize(CAPTIONS[:3])
    with torch.inference_mode():
        expected = theirs(ids, attention_mask=mask).last_hidden_state * mask[..., None]
        assert torch.allclose(toy.encode(CAPTIONS[:3]), expected, atol=1e-5)
