"""VAE, text encoder and image encoder in every layout that people have, against the plain file."""

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

from skyreels_model.image_encoder import to_original_names as clip_names
from skyreels_model.text_encoder import to_original_names as text_names
from toy.toyset import TEXT_ENCODER, VAE

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

REPACKED = TEXT_ENCODER.parent / "umt5_xxl_fp16.safetensors"
SPIECE = TEXT_ENCODER.parent / "google" / "umt5-xxl" / "spiece.model"
TEXT = {"vocab_size": 320, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="session")
def encoded(look):
    """`encoded(name)` -> the embedding of the prompt by our loader's CLIP, and its report."""

    def run(name):
        prompt = {
            "2": graphs.node("SkyReelsV2TextEncoderLoader", text_encoder_name=name),
            "20": graphs.node("CLIPTextEncode", clip=["2", 0], text=graphs.PROMPT),
        }
        text, report = look(prompt, text=["20", 0], report=["2", 1])
        return text[0][0], report

    return run


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_text_encoder_in_scaled_fp8(encoded, models_folder, dtype):
    """The layout of umt5_xxl_fp8_e4m3fn_scaled: transformers' names, scales, its tokenizer."""
    plain = load_file(REPACKED)
    stored, meant = dict(plain), dict(plain)
    for key, value in plain.items():
        if value.ndim == 2 and ".layer." in key and "relative_attention_bias" not in key:
            scale = value.float().abs().max() / torch.finfo(dtype).max
            stored[key] = (value.float() / scale).to(dtype)
            stored[key.replace("weight", "scale_weight")] = scale
            meant[key] = stored[key].float() * scale
    assert len(stored) > len(plain) + 10
    stored["scaled_fp8"] = torch.zeros(0, dtype=dtype)
    folder = models_folder / "text_encoders"
    save_file(stored, folder / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    save_file(meant, folder / "meant.safetensors")
    text, report = encoded("umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    assert relative(text, encoded("meant.safetensors")[0]) < 1e-5
    assert f"scaled {str(dtype)[6:]}" in report and "0 missing, 0 unexpected" in report


@pytest.mark.parametrize("layout", ["folder", "shards", "pickled shards"])
def test_text_encoder_as_transformers_saves_it(encoded, models_folder, layout):
    """The folder text_encoder of a -Diffusers repository, its tokenizer beside it."""
    torch.manual_seed(0)
    theirs = transformers.UMT5EncoderModel(transformers.UMT5Config(**TEXT)).eval()
    repository = models_folder / "text_encoders" / f"{layout}-Diffusers"
    size = "10GB" if layout == "folder" else "50KB"
    safe = layout != "pickled shards"
    theirs.save_pretrained(
        repository / "text_encoder", max_shard_size=size, safe_serialization=safe
    )
    (repository / "tokenizer").mkdir(exist_ok=True)
    (repository / "tokenizer" / "spiece.model").write_bytes(SPIECE.read_bytes())
    files = sorted((repository / "text_encoder").glob("*.safetensors" if safe else "*.bin"))
    assert (len(files) == 1) == (layout == "folder")
    text, report = encoded(f"{repository.name}/text_encoder/{files[0].name}")
    assert "0 missing, 0 unexpected" in report

    from skyreels_model.text_encoder.tokenizer import Tokenizer

    ids, mask = Tokenizer(SPIECE.read_bytes()).tokenize([graphs.PROMPT])
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert relative(text, expected * mask[..., None]) < 1e-5


@pytest.fixture(scope="session")
def decoded(look):
    """`decoded(name)` -> frames that our loader's VAE decodes from a fixed latent, its report."""
    torch.manual_seed(1)
    latent = torch.randn(1, 16, 2, 2, 2)

    def run(name):
        prompt = {"3": graphs.node("SkyReelsV2VAELoader", vae_name=name)}
        vae, report = look(prompt, vae=["3", 0], report=["3", 1])
        return vae.decode(latent), report

    return run


def test_vae_as_diffusers_saves_it(decoded, models_folder):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKLWan(base_dim=8, z_dim=16).requires_grad_(False)
    theirs.decoder.conv_out.weight.mul_(0.2)
    folder = models_folder / "vae" / "SkyReels-V2-DF-14B-540P-Diffusers" / "vae"
    theirs.save_pretrained(folder)
    frames, report = decoded(f"{folder.parent.name}/vae/diffusion_pytorch_model.safetensors")
    assert "194 tensors matched, 0 missing, 0 unexpected" in report
    torch.manual_seed(1)
    expected = theirs.decode(torch.randn(1, 16, 2, 2, 2)).sample  # (1, 3, 5, 16, 16)
    expected = (expected.clamp(-1, 1) + 1) / 2
    assert relative(frames, expected.movedim(1, -1)) < 1e-5


def test_vae_files_of_others(decoded, models_folder):
    original = torch.load(VAE, weights_only=True)
    expected, _ = decoded(graphs.TOY["vae"])
    for name, prefix in (("wan_2.1_vae", ""), ("prefixed", "first_stage_model.")):
        state = {prefix + key: value.contiguous() for key, value in original.items()}
        state["model_type.Wan2.1-VAE"] = torch.zeros(1)
        save_file(state, models_folder / "vae" / f"{name}.safetensors")
        frames, report = decoded(f"{name}.safetensors")
        assert torch.equal(frames, expected) and "0 unexpected" in report
    torch.save({"state_dict": original}, models_folder / "vae" / "nested.pth")
    assert torch.equal(decoded("nested.pth")[0], expected)


def test_of_two_vaes_in_a_file_the_averaged_one_is_taken_and_named(decoded, models_folder):
    original = torch.load(VAE, weights_only=True)
    other = {key: torch.zeros_like(value) for key, value in original.items()}
    torch.save({"model": other, "ema": original}, models_folder / "vae" / "averaged.pt")
    frames, report = decoded("averaged.pt")
    assert torch.equal(frames, decoded(graphs.TOY["vae"])[0]) and "ema" in report


def test_image_encoder_as_transformers_saves_it(look, models_folder):
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        projection_dim=48,
    )
    theirs = transformers.CLIPVisionModelWithProjection(config).eval()
    folder = models_folder / "clip_vision" / "SkyReels-V2-I2V-14B-540P-Diffusers" / "image_encoder"
    theirs.save_pretrained(folder, max_shard_size="200KB")
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    prompt = {
        "1": graphs.node(
            "SkyReelsV2ImageEncoderLoader",
            image_encoder_name=f"{folder.parent.name}/image_encoder/{files[0].name}",
        )
    }
    tower, report = look(prompt, tower=["1", 0], report=["1", 1])
    assert "0 missing, 0 unexpected" in report
    image = torch.rand(1, 56, 56, 3)
    from skyreels_model.image_encoder import preprocess

    pixels = preprocess(image.movedim(-1, 1), 56)
    with torch.inference_mode():
        mine = tower.encode_image(image)
        # The I2V models were trained with exact GELU, which is what the original file means.
        for layer in theirs.vision_model.encoder.layers:
            layer.mlp.activation_fn = torch.nn.GELU()
        out = theirs(pixels, output_hidden_states=True)
    assert relative(mine["penultimate_hidden_states"], out.hidden_states[-2]) < 1e-5
    assert relative(mine["image_embeds"], out.image_embeds) < 1e-5


def test_published_key_lists_at_full_size():
    """transformers' and diffusers' own modules at the published sizes, on the meta device."""
    from skyreels_model.image_encoder import CLIPVision, CLIPVisionConfig
    from skyreels_model.text_encoder import UMT5Config, UMT5Encoder
    from skyreels_model.vae import VideoVAE
    from skyreels_model.vae.names import to_original_names as vae_names

    sizes = {"vocab_size": 256384, "d_model": 4096, "d_ff": 10240, "num_layers": 24}
    tower = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32}
    tower |= {"num_attention_heads": 16, "patch_size": 14, "projection_dim": 1024}
    with torch.device("meta"):
        text = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes, num_heads=64))
        image = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**tower))
        vae = diffusers.AutoencoderKLWan()
    for theirs, names, config, module in (
        (text, text_names, UMT5Config.from_state_dict, UMT5Encoder),
        (image, clip_names, CLIPVisionConfig.from_state_dict, CLIPVision),
    ):
        state = names(theirs.state_dict())
        ours = module(config(state), device="meta").state_dict()
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in ours.items()}
    state = vae_names(vae.state_dict())
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in VideoVAE(device="meta").state_dict().items()
    }


@pytest.mark.parametrize("category", ["diffusion_models", "diffusers"])
def test_a_whole_repository_in_one_place(host, models_folder, category):
    """Each loader offers its own part of it, and only that."""
    import sys
    from pathlib import Path

    import folder_paths

    module = next(name for name in sys.modules if name.endswith("nodes.host.files"))
    files = sys.modules[module]
    root = Path(folder_paths.folder_names_and_paths[category][0][0])
    name = f"whole-{category}"
    parts = {
        "diffusion_models": "transformer/model-00001-of-00002.safetensors",
        "text_encoders": "text_encoder/model-00001-of-00003.safetensors",
        "vae": "vae/diffusion_pytorch_model.safetensors",
        "clip_vision": "image_encoder/model.safetensors",
    }
    originals = {
        "text_encoders": "models_t5_umt5-xxl-enc-bf16.pth",
        "vae": "Wan2.1_VAE.pth",
        "clip_vision": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
    }
    for part in (*parts.values(), *originals.values()):
        file = root / name / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    for kind, part in parts.items():
        own = [one for one in files.list_files(kind) if one.startswith(name)]
        expected = {f"{name}/{part}"}
        if kind in originals:
            expected.add(f"{name}/{originals[kind]}")
        if kind != category:
            assert set(own) == expected
        assert files.find_file(kind, f"{name}/{part}") == root / name / part


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_text_encoder_in_gguf(encoded, models_folder, name):
    """With the names that the package's own map gives transformers' tensors; tokenizer beside."""
    gguf = pytest.importorskip("gguf")
    plain, kind = load_file(REPACKED), gguf.GGMLQuantizationType[name]
    layers = sum(key.endswith("SelfAttention.q.weight") for key in plain)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, layers)
    folder = models_folder / "text_encoders" / f"umt5-{name}"
    (folder / "google" / "umt5-xxl").mkdir(parents=True, exist_ok=True)
    (folder / "google" / "umt5-xxl" / "spiece.model").write_bytes(SPIECE.read_bytes())
    writer, meant = gguf.GGUFWriter(folder / "umt5.gguf", "t5encoder"), {}
    for key, value in plain.items():
        if key == "spiece_model":
            continue
        theirs, value = names.get_name(key, try_suffixes=(".weight",)), value.float()
        if value.ndim == 2 and value.shape[1] % 32 == 0:
            packed = gguf.quants.quantize(value.numpy(), kind)
            writer.add_tensor(theirs, packed, raw_dtype=kind)
            meant[key] = torch.from_numpy(gguf.quants.dequantize(packed, kind))
        else:
            writer.add_tensor(theirs, value.numpy())
            meant[key] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # The loader holds the embedding in bfloat16.
    meant["shared.weight"] = meant["shared.weight"].bfloat16().float()
    save_file({**meant, "spiece_model": plain["spiece_model"]}, folder / "meant.safetensors")
    text, report = encoded(f"umt5-{name}/umt5.gguf")
    assert relative(text, encoded(f"umt5-{name}/meant.safetensors")[0]) < 3e-3
    assert f"GGUF {name}" in report and "0 missing, 0 unexpected" in report
