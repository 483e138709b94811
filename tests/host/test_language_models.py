"""Language models in the host: found, loaded, packed, streamed, unloaded."""

import contextlib
import sys

import graphs
import pytest
import torch
from card.install import installed, use_dynamic
from card.tensors import CARD
from graphs.one_device import OneDevice
from safetensors.torch import load_file, save_file
from tiny_words import write_model

from devtools import inprocess
from skyreels_model.words import Message, Sampling
from skyreels_model.words.network import open_model
from skyreels_model.words.qwen import QwenEngine

node = graphs.node
CPU, META = torch.device("cpu"), torch.device("meta")
KINDS = ("qwen2", "qwen3", "qwen2_5_vl")
LIKELIEST = Sampling(max_tokens=16, temperature=0)
SAID = [Message("user", "A cat jumps.")]
FP8 = torch.float8_e4m3fn


def hear(_piece):
    pass


def module(end):
    """A module of the pack as the host has loaded it."""
    return next(m for name, m in sys.modules.items() if "/" in name and name.endswith(end))


@pytest.fixture(scope="module")
def files(models_folder):
    """The first file of each kind, in models/text_encoders; qwen3 tied and in shards."""
    made = {}
    for kind in KINDS:
        folder = models_folder / "text_encoders" / f"tiny {kind}"
        size = "50KB" if kind == "qwen3" else "5GB"
        made[kind] = write_model(folder, kind, size, tie_word_embeddings=kind == "qwen3")
    return made


@pytest.fixture
def load(look, files):
    """`load(kind)` -> a fresh engine by the loader's node, and its report."""

    def run(kind):
        name = f"tiny {kind}/{files[kind].name}"
        loader = node("SkyReelsV2LanguageModelLoader", language_model_name=name)
        return look({"1": loader}, engine=["1", 0], report=["1", 1])

    return run


def conversation(kind):
    picture = torch.linspace(0, 1, 56 * 84 * 3).reshape(1, 56, 84, 3)
    return [Message("user", "What?", picture)] if kind == "qwen2_5_vl" else SAID


@pytest.mark.parametrize("kind", KINDS)
def test_the_loaded_model_answers_as_without_a_host_and_partly_loaded(load, files, kind):
    said = conversation(kind)
    wanted = QwenEngine(open_model(files[kind]), kind).generate(said, LIKELIEST, hear)
    engine, report = load(kind)
    assert "width 64, 2 layers, stored float32" in report and " 0 missing, 0 unexpected" in report
    assert engine.generate(said, LIKELIEST, hear) == wanted
    inprocess.unload_models()
    assert engine.generate(said, LIKELIEST, hear) == wanted
    inprocess.unload_models()
    engine._place = lambda _needed: CPU
    with torch.inference_mode():
        for share in (0.001, 0.6):
            memory = int(engine.patcher.model_size() * share)
            engine.patcher.patch_model(device_to=CPU, lowvram_model_memory=memory)
            assert engine.patcher.model.model_lowvram and engine.patcher.loaded_size() <= memory
            assert engine.generate(said, LIKELIEST, hear) == wanted
            engine.patcher.unpatch_model(CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_weights_follow_their_inputs(load, kind, monkeypatch):
    """On PyTorch's meta device, which is not the CPU: no operator meets tensors of two."""
    # Which that device has not; here it is turned off around tables of positions.
    monkeypatch.setattr(torch, "autocast", lambda **_options: contextlib.nullcontext())
    for share in (0.001, 0.7):
        engine, _ = load(kind)
        memory = int(engine.patcher.model_size() * share)
        with torch.inference_mode():
            engine.patcher.patch_model(device_to=META, lowvram_model_memory=memory)
            engine._move_buffers(META)
            ids = torch.zeros(1, 5, dtype=torch.long, device=META)
            places = ids.expand(3, 1, 5) if kind == "qwen2_5_vl" else ids
            with OneDevice():
                out = engine.network(input_ids=ids, position_ids=places)
            assert out.logits.device == META


def test_the_host_is_told_what_an_answer_takes(load, monkeypatch):
    import comfy.model_management as management

    asked, original = [], management.load_models_gpu
    monkeypatch.setattr(
        management,
        "load_models_gpu",
        lambda models, memory_required=0: asked.append(memory_required) or original(models),
    )
    engine, _ = load("qwen2")
    engine.generate(SAID, LIKELIEST, hear)
    engine.generate(SAID, Sampling(32, 0), hear)
    short, long = asked
    # Keys and values of 2 layers, 1 head of 32 numbers.
    assert long - short >= 16 * 2 * 2 * 32 * 4 and short > 16 * 2 * 2 * 32 * 4


def test_a_tied_head_is_in_memory_once(load):
    engine, _ = load("qwen3")
    names = [name for name, _ in engine.patcher.model.named_parameters()]
    assert (
        not [name for name in names if "lm_head" in name] and "network.model.norm.weight" in names
    )


def test_the_host_can_build_the_patcher_again(load):
    import comfy.model_patcher

    engine, _ = load("qwen2")
    make, arguments = engine.patcher.cached_patcher_init[:2]
    with torch.inference_mode():
        again = make(*arguments, disable_dynamic=True)
    assert type(again) is comfy.model_patcher.ModelPatcher
    before, after = engine.patcher.model.state_dict(), again.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_loads_where_the_host_gives_layers_their_weights_late(load, monkeypatch):
    import comfy.memory_management

    wanted = load("qwen2_5_vl")[0].generate(conversation("qwen2_5_vl"), LIKELIEST, hear)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    engine, _ = load("qwen2_5_vl")
    assert engine.generate(conversation("qwen2_5_vl"), LIKELIEST, hear) == wanted


def to_plain_fp8(weights):
    return {key: value.to(FP8) for key, value in weights.items()}


def to_scaled_fp8(weights):
    state = {"scaled_fp8": torch.zeros(2).to(FP8)}
    for key, value in weights.items():
        if key.endswith("proj.weight"):
            scale = value.abs().max() / torch.finfo(FP8).max
            state[key.removesuffix("weight") + "scale_weight"] = scale.clone()
            value = (value / scale).to(FP8)
        state[key] = value
    return state


@pytest.mark.parametrize("change", [to_plain_fp8, to_scaled_fp8])
def test_fp8_files_stay_fp8_and_write_what_their_numbers_say(load, files, models_folder, change):
    source = files["qwen2"]
    folder = models_folder / "text_encoders" / "tiny fp8"
    folder.mkdir(exist_ok=True)
    for file in sorted(source.parent.iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    weights = change(load_file(source))
    save_file(weights, folder / source.name)
    with torch.inference_mode():  # as for nodes
        engine, report = module("words.language_model").load_engine(folder / source.name)
        text = engine.generate(SAID, LIKELIEST, hear)
    assert "float8_e4m3fn" in report
    packed = engine.network.model.layers[0].self_attn.q_proj.weight
    assert type(packed).__name__ == "QuantizedTensor" or packed.dtype == FP8
    plain = {}
    for key, value in weights.items():
        if key.endswith(("scale_weight", "scaled_fp8")):
            continue
        scale = weights.get(key.removesuffix("weight") + "scale_weight", torch.ones(()))
        plain[key] = value.float() * scale
    save_file(plain, folder / source.name)
    wanted = QwenEngine(open_model(folder / source.name), "x").generate(SAID, LIKELIEST, hear)
    assert text == wanted


@pytest.mark.parametrize("category", ["LLM", "text_encoders"])
def test_models_are_found_in_both_folders(models_folder, files, category):
    import folder_paths

    pack = module("nodes.host.files")
    folder = models_folder / category
    if category == "LLM":
        folder.mkdir(exist_ok=True)
        folder_paths.folder_names_and_paths[pack.LLM_CATEGORY][0].append(str(folder))
    (folder / "mine").mkdir(exist_ok=True)
    shards = [folder / "mine" / f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for shard in (*shards, folder / "mine" / "model.bin"):
        shard.write_bytes(b"")
    listed = [n for n in pack.list_files(pack.LANGUAGE_MODELS) if n.startswith("mine/")]
    assert listed == ["mine/model-00001-of-00002.safetensors"]
    assert pack.find_file(pack.LANGUAGE_MODELS, listed[0]) == shards[0]
    for file in sorted((folder / "mine").iterdir()):
        file.unlink()


@pytest.fixture
def card(host, monkeypatch):
    """The stand-in for a card, with the host's dynamic memory on it."""
    import comfy.model_management as management
    import comfy.model_prefetch

    if not hasattr(management, "STREAM_AIMDO_CAST_BUFFERS"):
        pytest.skip("this ComfyUI has another dynamic patcher")
    inprocess.unload_models()
    with torch.inference_mode(), installed(monkeypatch) as card:
        use_dynamic(monkeypatch)
        yield card
        management.reset_cast_buffers()
        comfy.model_prefetch.cleanup_prefetch_queues()
        inprocess.unload_models()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_layer_by_layer(card, load, files, kind):
    import comfy.model_management as management

    ids = torch.arange(7)[None] + 40
    places = ids.expand(3, 1, 7) if kind == "qwen2_5_vl" else ids
    wanted = open_model(files[kind]).network(input_ids=ids, position_ids=places).logits
    engine, _ = load(kind)
    assert engine.patcher.is_dynamic()
    for budget in (1 << 40, engine.patcher.model_size() // 3):
        card.vram.budget = budget
        management.load_models_gpu([engine.patcher])
        engine._move_buffers(CARD)
        out = engine.network(input_ids=ids.to(CARD), position_ids=places.to(CARD))
        assert torch.equal(out.logits.cpu(), wanted)
        assert 0 < card.vram.used() <= budget
        management.reset_cast_buffers()
        inprocess.unload_models()
