"""Language models in the host: loaded, streamed, unloaded, asked; CLIPs as engines; the nodes."""

import contextlib
import dataclasses
import functools
import sys

import graphs
import pytest
import torch
from card.install import installed, use_dynamic
from card.tensors import CARD
from graphs.one_device import OneDevice
from safetensors.torch import load_file, save_file
from tiny_words import ScriptedEngine, write_model
from tiny_words.server import Server, piece

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
    import comfy.model_management as management

    said = conversation(kind)
    wanted = QwenEngine(open_model(files[kind]), kind).generate(said, LIKELIEST, hear)
    engine, report = load(kind)
    assert "width 64, 2 layers, stored float32" in report and " 0 missing, 0 unexpected" in report
    assert engine.generate(said, LIKELIEST, hear) == wanted
    management.unload_all_models()
    assert engine.generate(said, LIKELIEST, hear) == wanted
    management.unload_all_models()
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


@pytest.fixture
def writer_clip(host):
    """A CLIP of the host that writes: its Qwen3 at a tiny size, with random weights."""
    import comfy.sd
    import comfy.text_encoders.llama as llama
    import comfy.text_encoders.z_image as z_image
    from comfy import sd1_clip
    from comfy.supported_models_base import ClipTarget

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}

    class TinyModel(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device, layer="hidden", layer_idx=-1, textmodel_json_config=sizes,
                dtype=torch.float32, special_tokens={"pad": 151643}, layer_norm_hidden_state=False,
                model_class=llama.Qwen3_06B, enable_attention_masks=True,
                return_attention_masks=True, model_options=model_options or {},
            )  # fmt: skip

    def model(device="cpu", dtype=None, model_options=None):
        return sd1_clip.SD1ClipModel(
            device=device, dtype=torch.float32, name="qwen3_4b", clip_model=TinyModel,
            model_options=model_options or {},
        )  # fmt: skip

    torch.manual_seed(0)
    clip = comfy.sd.CLIP(
        ClipTarget(z_image.ZImageTokenizer, model), model_options={"dtype": torch.float32}
    )
    for parameter in clip.cond_stage_model.parameters():
        parameter.data.normal_(std=0.3)
    return clip


@pytest.fixture
def umt5(look):
    (clip,) = look(
        {"1": node("SkyReelsV2TextEncoderLoader", text_encoder_name=graphs.TOY["text"])},
        clip=["1", 0],
    )
    return clip


class TestCLIP:
    @pytest.mark.parametrize("temperature", [0, 1.0])
    def test_it_writes_what_the_host_writes(self, writer_clip, temperature):
        clip, pieces = writer_clip, []
        engine = module("words.clip").CLIPEngine(clip)
        said = [Message("system", "Be brief."), Message("user", "A (cat:1.2) {jumps}.")]
        sampling = Sampling(12, temperature, top_p=0.9, top_k=20, seed=3)
        with torch.inference_mode():
            text = engine.generate(said, sampling, pieces.append)
            tokens = clip.tokenize(
                "Be brief.\n\nA (cat:1.2) {jumps}.", skip_template=False, min_length=1
            )
            ids = clip.generate(
                tokens, do_sample=temperature > 0, max_length=12, temperature=temperature or 1.0,
                top_k=20, top_p=0.9, seed=3,
            )  # fmt: skip
        assert text == clip.decode(ids)
        assert text.startswith("".join(pieces)) and len(pieces) == 12

    def test_it_ends_at_the_token_that_is_refused_and_is_as_before(self, writer_clip):
        engine, calls = module("words.clip").CLIPEngine(writer_clip), []

        def cancel(piece):
            calls.append(piece)
            raise InterruptedError

        with torch.inference_mode(), pytest.raises(InterruptedError):
            engine.generate(SAID, LIKELIEST, cancel)
        assert len(calls) == 1 and "sample_token" not in vars(engine.transformer)

    def test_it_ends_before_a_stop_text(self, writer_clip):
        engine = module("words.clip").CLIPEngine(writer_clip)
        with torch.inference_mode():
            whole = engine.generate(SAID, LIKELIEST, hear)
            stop = whole[5:8]
            text = engine.generate(SAID, Sampling(16, 0, stop=(stop,)), hear)
        assert text == whole[: whole.find(stop)]

    def test_one_that_only_reads_is_refused(self, umt5):
        with pytest.raises(ValueError, match="does not write text .*Language Model Loader"):
            module("words.asking").as_engine(umt5)

    def test_it_says_whether_it_sees(self, writer_clip):
        assert module("words.asking").as_engine(writer_clip).sees_pictures is False


@pytest.fixture
def give(look):
    """`give(value)`: a node that gives it; of the pack that `look` loads."""

    def run(value):
        module("/host/probe").GIVEN["words"] = value
        return node("SkyReelsV2TestGiver", name="words")

    return run


def enhancer(engine, prompt, **more):
    return {"1": engine, "2": node("SkyReelsV2PromptEnhancer", engine=["1", 0], prompt=prompt,
                                   **{"seed": 0, "language": "english", **more})}  # fmt: skip


def test_a_prompt_is_enhanced_and_shown_on_the_node(look, give):
    engine = ScriptedEngine(["<think>so</think>A close-up. A cat jumps."])
    (text,) = look(enhancer(give(engine), "a cat", seed=7, temperature=0.0), text=["2", 0])
    assert text == "A close-up. A cat jumps."
    (asked,) = engine.asked
    assert asked[0][1].text == "Idea: a cat" and (asked[1].seed, asked[1].temperature) == (7, 0.0)


def test_progress_goes_on_with_each_token_to_the_end(look, give, monkeypatch):
    import comfy.utils

    values, original = [], comfy.utils.ProgressBar.update_absolute

    def record(bar, value, *more, **options):
        values.append((value, bar.total))
        return original(bar, value, *more, **options)

    monkeypatch.setattr(comfy.utils.ProgressBar, "update_absolute", record)
    engine = ScriptedEngine(["One two three.", "Four five."])
    (text,) = look(enhancer(give(engine), "0s: one\n4s: four"), text=["2", 0])
    assert text == "0s: One two three.\n4s: Four five."
    assert values == [(value, 1280) for value in (1, 2, 3, 640, 641, 642, 1280)]


def test_cancel_ends_the_work_at_the_next_token(run_prompt, give):
    import comfy.model_management

    class Cancelled(ScriptedEngine):
        def generate(self, messages, sampling, on_token):
            on_token("one ")
            comfy.model_management.interrupt_current_processing()
            on_token("two ")
            raise AssertionError("it went on")

    result = run_prompt(enhancer(give(Cancelled([])), "a cat") | {"3": node(
        "PreviewAny", source=["2", 0])})  # fmt: skip
    assert not result.success and "Assertion" not in result.describe()


def failure(run_prompt, graph):
    result = run_prompt(graph | {"3": node("PreviewAny", source=["2", 0])})
    assert not result.success
    return result.describe()


@pytest.mark.parametrize("value", [None, "a cat", 5])
def test_what_is_no_engine_is_refused(run_prompt, give, value):
    text = failure(run_prompt, enhancer(give(value), "a cat"))
    assert "engine is" in text and "must be a language model" in text


def test_the_films_text_encoder_is_refused(run_prompt, give, umt5):
    assert "does not write text" in failure(run_prompt, enhancer(give(umt5), "a cat"))


def test_pictures_need_an_engine_that_sees(run_prompt, give):
    engine = ScriptedEngine([], sees_pictures=False)
    graph = enhancer(give(engine), "a cat", start_image=["4", 0])
    graph["4"] = node("EmptyImage", width=32, height=32, batch_size=2, color=255)
    assert "reads text only" in failure(run_prompt, graph)


def test_the_first_image_is_seen(look, give):
    engine = ScriptedEngine(["It moves."])
    graph = enhancer(give(engine), "", start_image=["4", 0])
    graph["4"] = node("EmptyImage", width=32, height=16, batch_size=2, color=255)
    look(graph, text=["2", 0])
    assert engine.asked[0][0][1].pictures.shape == (1, 16, 32, 3)


class TestEndpoint:
    def test_its_address_comes_from_the_environment(self, look, monkeypatch):
        def answer(handler, _values, _number):
            handler.stream(piece("A long shot."), piece(" Rain.", "stop"))

        endpoint = node("SkyReelsV2LanguageEndpoint", model="m", sees_images=True)
        with Server(answer) as server:
            monkeypatch.setenv("SKYREELS_V2_WORDS_URL", server.url)
            monkeypatch.setenv("SKYREELS_V2_WORDS_KEY", "secret")
            (text,) = look(enhancer(endpoint, "rain"), text=["2", 0])
        assert text == "A long shot. Rain."
        assert server.seen[0][1]["Authorization"] == "Bearer secret"

    def test_without_one_nothing_is_sent(self, run_prompt, monkeypatch):
        import socket

        def refuse(*_given):
            raise AssertionError("a connection was opened")

        monkeypatch.delenv("SKYREELS_V2_WORDS_URL", raising=False)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        endpoint = node("SkyReelsV2LanguageEndpoint", model="", sees_images=True)
        text = failure(run_prompt, enhancer(endpoint, "rain"))
        assert "SKYREELS_V2_WORDS_URL is not set" in text and "connection" not in text


def test_a_model_writes_the_same_for_the_same_seed(look, files, monkeypatch):
    nodes = module("nodes.words")
    short = dataclasses.replace(nodes.Enhancer().sampling, max_tokens=24)
    monkeypatch.setattr(nodes, "Enhancer", functools.partial(nodes.Enhancer, sampling=short))
    name = f"tiny qwen2/{files['qwen2'].name}"
    loader = node("SkyReelsV2LanguageModelLoader", language_model_name=name)
    texts = [
        look(enhancer(loader, "a cat", seed=seed, temperature=1.0), text=["2", 0])[0]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


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
    management.unload_all_models()
    with torch.inference_mode(), installed(monkeypatch) as card:
        use_dynamic(monkeypatch)
        yield card
        management.reset_cast_buffers()
        comfy.model_prefetch.cleanup_prefetch_queues()
        management.unload_all_models()


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
        management.unload_all_models()
