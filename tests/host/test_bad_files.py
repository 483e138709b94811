"""Files that cannot be used, in every loader: told in the user's terms, and nothing half-loaded."""

import shutil

import graphs
import pytest
import torch
from safetensors.torch import load_file, save_file

from devtools.prompt import InvalidPrompt
from toy.toyset import TEXT_ENCODER, VAE, transformer_path

CLIP = VAE.parents[2] / "clip_vision" / "toy"
CLIP_FILE = CLIP / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
FILES = {
    "a diffusion transformer": transformer_path(),
    "a text encoder": TEXT_ENCODER,
    "a Wan 2.1 VAE": VAE,
    "a CLIP image encoder": CLIP_FILE,
}
LOADERS = {
    "diffusion_models": ("SkyReelsV2ModelLoader", "model_name", "a diffusion transformer"),
    "text_encoders": ("SkyReelsV2TextEncoderLoader", "text_encoder_name", "a text encoder"),
    "vae": ("SkyReelsV2VAELoader", "vae_name", "a Wan 2.1 VAE"),
    "clip_vision": ("SkyReelsV2ImageEncoderLoader", "image_encoder_name", "a CLIP image encoder"),
    "loras": ("SkyReelsV2LoraLoader", "lora_name", "a LoRA"),
}


@pytest.fixture
def refused(run_prompt, models_folder):
    """`refused(category, name)` -> what the loader of a category says of a file in it."""

    def run(category, name):
        node, name_input, _ = LOADERS[category]
        inputs = {name_input: name}
        if node == "SkyReelsV2ModelLoader":
            inputs |= {"weight_dtype": "default", "attention": "auto", "variant": "auto"}
        prompt = {"1": graphs.node(node, **inputs)}
        if node == "SkyReelsV2LoraLoader":
            prompt["2"] = graphs.film()["1"]
            inputs |= {"model": ["2", 0], "strength": 1.0}
            prompt["1"] = graphs.node(node, **inputs)
        prompt["9"] = graphs.node("SkyReelsV2TestProbe", value=["1", 0], name="never")
        result = run_prompt(prompt)
        assert not result.success
        text = result.describe()
        assert f"{name_input} '{name}'" in text and node in text and "ValueError" in text, text
        return text

    return run


@pytest.fixture(autouse=True)
def probe(look):
    """The probe node is there, and a good file loads after any bad one."""
    yield
    prompt = {"3": graphs.film()["3"]}
    assert "0 missing" in look(prompt, report=["3", 1])[0]


WRONG = [
    (category, kind) for category, (_, _, own) in LOADERS.items() for kind in FILES if kind != own
]


@pytest.mark.parametrize(("category", "kind"), WRONG)
def test_a_file_of_another_kind_is_named(refused, models_folder, category, kind):
    file = models_folder / category / f"wrong{FILES[kind].suffix}"
    shutil.copy(FILES[kind], file)
    text = refused(category, file.name)
    assert kind in text, text


@pytest.mark.parametrize("category", LOADERS)
def test_truncated_empty_and_foreign_files(refused, models_folder, category):
    folder, whole = models_folder / category, transformer_path().read_bytes()
    for name, content in (("cut.safetensors", whole[:50_000]), ("empty.safetensors", b"")):
        (folder / name).write_bytes(content)
        assert "truncated or still being downloaded" in refused(category, name)
    for name, content in (("cut.pth", VAE.read_bytes()[:50_000]), ("text.pth", b"<html>no</html>")):
        (folder / name).write_bytes(content)
        assert name in refused(category, name)


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch SHOULD_NOT_EXIST",)


@pytest.mark.parametrize("category", LOADERS)
def test_pickles_with_code_are_refused_and_not_run(refused, models_folder, category, monkeypatch):
    monkeypatch.chdir(models_folder)
    name = "hostile-00001-of-00002.bin"
    for part in (name, name.replace("00001-of", "00002-of")):
        torch.save({"decoder.conv1.weight": Hostile()}, models_folder / category / part)
    assert "would run code when loaded" in refused(category, name)
    assert not (models_folder / "SHOULD_NOT_EXIST").exists()


@pytest.mark.parametrize("category", LOADERS)
def test_a_link_to_nowhere(refused, models_folder, category):
    (models_folder / category / "gone.safetensors").symlink_to(models_folder / "nowhere")
    assert "a link to nowhere" in refused(category, "gone.safetensors")


@pytest.mark.parametrize("name", ["../vae/x.safetensors", "/etc/passwd", "..\\x.pth", ""])
def test_paths_outside_of_the_model_folders(refused, models_folder, name):
    save_file({"x": torch.ones(1)}, models_folder / "vae" / "x.safetensors")
    for category in LOADERS:
        with pytest.raises(InvalidPrompt, match=LOADERS[category][1]):
            refused(category, name)


# One weight of each kind of model, by the name that its published file has for it.
ONE_WEIGHT = {
    "diffusion_models": "blocks.2.self_attn.v.weight",
    "text_encoders": "blocks.1.attn.o.weight",
    "vae": "decoder.middle.0.residual.2.weight",
    "clip_vision": "visual.transformer.0.attn.proj.weight",
}


def tensors_of(category):
    file = FILES[LOADERS[category][2]]
    if file.suffix == ".pth":
        return dict(torch.load(file, weights_only=True))
    return load_file(file)


def write(category, models_folder, name, state):
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, models_folder / category / name)
    if category == "text_encoders":
        tokenizer = models_folder / category / "google" / "umt5-xxl"
        tokenizer.mkdir(parents=True, exist_ok=True)
        spiece = TEXT_ENCODER.parent / "google" / "umt5-xxl" / "spiece.model"
        shutil.copy(spiece, tokenizer / "spiece.model")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("category", ONE_WEIGHT)
def test_numbers_that_are_none(refused, models_folder, category, value):
    state, key = tensors_of(category), ONE_WEIGHT[category]
    state[key] = state[key].clone()
    state[key].view(-1)[3] = value
    write(category, models_folder, "none.safetensors", state)
    text = refused(category, "none.safetensors")
    assert f"{key} holds numbers that are infinite or not a number" in text


def test_a_scale_that_is_no_number(refused, models_folder):
    state = load_file(transformer_path())
    layer = "blocks.1.ffn.0"
    state[f"{layer}.weight"] = state[f"{layer}.weight"].to(torch.float8_e4m3fn)
    state[f"{layer}.scale_weight"] = torch.tensor(torch.nan)
    write("diffusion_models", models_folder, "scale.safetensors", state)
    assert f"{layer}.weight holds numbers" in refused("diffusion_models", "scale.safetensors")


def test_scales_that_are_not_read(refused, models_folder):
    """Whole numbers with scales, scales by columns or of blocks, and any of a VAE."""
    layer, plain = "blocks.1.ffn.0", load_file(transformer_path())
    rows, columns = plain[f"{layer}.weight"].shape
    whole = (plain[f"{layer}.weight"] * 100).round().to(torch.int16)
    eight = plain[f"{layer}.weight"].to(torch.float8_e4m3fn)
    cases = [
        (whole, {"weight_scale": torch.ones(rows, 1)}, "is int16 with scales beside it"),
        (whole, {}, "is stored as int16"),
        (eight, {"weight_scale": torch.ones(1, columns)}, f"one for each of its {rows} rows"),
        (eight, {"weight_scale": torch.ones(3)}, f"scales of shape (3,) for a weight of ({rows}"),
        (eight, {"weight_scale": torch.tensor(-0.5)}, "a scale of -0.5; it must be above 0"),
        (eight, {"weight_scale": torch.tensor(0.0)}, "a scale of 0; it must be above 0"),
        (eight, {"weight_scale_inv": torch.ones(1, 1)}, "scales that are not read for this kind"),
    ]
    for weight, scales, says in cases:
        beside = {f"{layer}.{name}": scale for name, scale in scales.items()}
        write("diffusion_models", models_folder, "scales.safetensors",
              {**plain, f"{layer}.weight": weight, **beside})  # fmt: skip
        assert says in refused("diffusion_models", "scales.safetensors")
    state, key = tensors_of("vae"), ONE_WEIGHT["vae"]
    state[key] = state[key].to(torch.float8_e4m3fn)
    state[key.replace("weight", "scale_weight")] = torch.tensor(0.5)
    write("vae", models_folder, "scales.safetensors", state)
    assert "scales that are not read for this kind" in refused("vae", "scales.safetensors")


@pytest.mark.parametrize("category", ONE_WEIGHT)
def test_pickled_tensors_without_numbers_or_names(refused, models_folder, category):
    state, key = tensors_of(category), ONE_WEIGHT[category]
    empty = torch.empty(state[key].shape, device="meta")
    sparse = state[key].to_sparse()
    for broken in ({**state, key: empty}, {**state, 7: state[key]}, {**state, key: sparse}):
        torch.save(broken, models_folder / category / "hollow.pth")
        assert "named tensors with numbers in them" in refused(category, "hollow.pth")


def test_damage_that_nobody_thought_of(refused, models_folder):
    """Whatever it raises is told as the file's, and a block's number allocates nothing."""
    plain = load_file(transformer_path())
    for change in ({"head.head.weight": torch.ones(())}, {"blocks.3000000000.x": torch.ones(1)}):
        write("diffusion_models", models_folder, "odd.safetensors", {**plain, **change})
        text = refused("diffusion_models", "odd.safetensors")
        assert "loading it failed" in text or "block 4 of 3000000001 is missing" in text


@pytest.mark.parametrize("category", ONE_WEIGHT)
def test_missing_and_misshapen_weights(refused, models_folder, category):
    state, key = tensors_of(category), ONE_WEIGHT[category]
    write(category, models_folder, "gap.safetensors", {k: v for k, v in state.items() if k != key})
    assert key in refused(category, "gap.safetensors")
    state[key] = state[key][:-1]
    write(category, models_folder, "shape.safetensors", state)
    assert key in refused(category, "shape.safetensors")


def test_shards_of_two_downloads_in_one_folder(refused, look, models_folder):
    """A set that another precision's file has got into is refused, two whole sets are two sets."""
    state = {k: v.float() for k, v in load_file(transformer_path()).items()}
    keys, folder = sorted(state), models_folder / "diffusion_models" / "two"
    folder.mkdir(exist_ok=True)
    for stem, count, dtype in (("model", 2, torch.float32), ("model.fp16", 3, torch.float16)):
        for i in range(count):
            part = {k: state[k].to(dtype) for k in keys[i::count]}
            save_file(part, folder / f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors")
    for stem, count, dtype in (("model", 2, "float32"), ("model.fp16", 3, "float16")):
        prompt = {"1": graphs.film()["1"]}
        prompt["1"]["inputs"]["model_name"] = f"two/{stem}-00001-of-{count:05d}.safetensors"
        (report,) = look(prompt, report=["1", 1])
        assert f"stored {dtype}" in report and "0 missing, 0 unexpected" in report
    half = {k: state[k].half() for k in keys[1::2]}
    save_file(half, folder / "model-00002-of-00002.safetensors")
    text = refused("diffusion_models", "two/model-00001-of-00002.safetensors")
    assert "shards of two downloads in different precision" in text and "00002-of" in text


def test_gguf_of_another_architecture_and_cut(refused, models_folder):
    gguf = pytest.importorskip("gguf")
    file = models_folder / "diffusion_models" / "flux.gguf"
    writer = gguf.GGUFWriter(file, "flux")
    writer.add_tensor("double_blocks.0.img_attn.qkv.weight", torch.zeros(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "GGUF file of the architecture 'flux'" in refused("diffusion_models", "flux.gguf")
    (file.parent / "cut.gguf").write_bytes(file.read_bytes()[:100])
    assert "not a whole GGUF file" in refused("diffusion_models", "cut.gguf")


def test_scales_without_weights_and_an_unknown_format(refused, models_folder):
    state = load_file(transformer_path())
    state["blocks.9.ffn.0.scale_weight"] = torch.ones(())
    write("diffusion_models", models_folder, "scales.safetensors", state)
    text = refused("diffusion_models", "scales.safetensors")
    assert "scales for blocks.9.ffn.0, but not blocks.9.ffn.0.weight" in text
    del state["blocks.9.ffn.0.scale_weight"]
    state["blocks.0.ffn.0.comfy_quant"] = torch.tensor(list(b'{"format": "int3_of_2030"}')).byte()
    write("diffusion_models", models_folder, "future.safetensors", state)
    text = refused("diffusion_models", "future.safetensors")
    assert "'int3_of_2030', which this ComfyUI does not know" in text
