"""Who writes in the host: its CLIPs as engines, the prompt enhancer, the endpoint."""

import dataclasses
import functools
import json
import sys

import graphs
import pytest
import torch
from tiny_words import ScriptedEngine
from tiny_words.server import Server, piece

from skyreels_model.words import Message, Sampling

node = graphs.node
LIKELIEST = Sampling(max_tokens=16, temperature=0)
SAID = [Message("user", "A cat jumps.")]


def hear(_piece):
    pass


def module(end):
    """A module of the pack as the host has loaded it."""
    return next(m for name, m in sys.modules.items() if "/" in name and name.endswith(end))


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


def test_an_image_that_is_not_finite_is_named(run_prompt, give):
    module("/host/probe").GIVEN["image"] = torch.full((1, 8, 8, 3), torch.nan)
    graph = enhancer(give(ScriptedEngine([])), "a cat", start_image=["4", 0])
    graph["4"] = node("SkyReelsV2TestGiver", name="image")
    assert "start_image is 'not finite'" in failure(run_prompt, graph)


def test_a_failure_without_any_answer_is_a_plain_one(run_prompt, give):
    engine = ScriptedEngine([ValueError("the server is gone")])
    graph = enhancer(give(engine), "a cat") | {"3": node("PreviewAny", source=["2", 0])}
    assert run_prompt(graph).error["exception_type"] == "ValueError"


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
        assert "no address is set, and nothing is sent" in text and "connection" not in text

    @pytest.fixture
    def settings(self, monkeypatch, tmp_path):
        """`settings(**values)`: what is set on the page, and nothing in the environment."""
        import folder_paths

        for name in ("URL", "KEY", "MODEL"):
            monkeypatch.delenv(f"SKYREELS_V2_WORDS_{name}", raising=False)
        monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path))
        file = tmp_path / "default" / "comfy.settings.json"
        file.parent.mkdir()

        def write(content=None, **values):
            named = {f"SkyReelsV2.Words.{name}": value for name, value in values.items()}
            file.write_text(json.dumps(named) if content is None else content, encoding="utf-8")

        return write

    def test_its_address_comes_from_the_settings(self, look, settings):
        def answer(handler, values, _number):
            handler.stream(piece(f"By {values['model']}.", "stop"))

        endpoint = node("SkyReelsV2LanguageEndpoint", model="", sees_images=True)
        with Server(answer) as server:
            settings(Url=f" {server.url} ", Key="secret", Model="mine")
            (text,) = look(enhancer(endpoint, "rain"), text=["2", 0])
        assert text == "By mine." and server.seen[0][1]["Authorization"] == "Bearer secret"

    def test_a_key_goes_only_to_the_server_that_it_is_for(self, settings, monkeypatch):
        read = module("host.words.endpoint").read_places
        settings(Url="http://settings", Key="of the settings")
        assert list(read().values()) == ["http://settings", "of the settings", ""]
        monkeypatch.setenv("SKYREELS_V2_WORDS_KEY", "of the environment")
        assert list(read().values()) == ["http://settings", "of the settings", ""]
        monkeypatch.setenv("SKYREELS_V2_WORDS_URL", "http://environment")
        assert list(read().values()) == ["http://environment", "of the environment", ""]

    def test_with_several_users_the_settings_are_nobodys(self, settings, monkeypatch):
        import comfy.cli_args

        settings(Url="http://settings")
        monkeypatch.setattr(comfy.cli_args.args, "multi_user", True, raising=False)
        assert not any(module("host.words.endpoint").read_places().values())

    @pytest.mark.parametrize("content", ["", "{", "[1]", '{"SkyReelsV2.Words.Url": 5}'])
    def test_settings_that_cannot_be_read_are_none(self, settings, content):
        settings(content)
        assert not any(module("host.words.endpoint").read_places().values())

    def test_another_address_makes_the_node_another(self, settings):
        find = module("nodes.words").SkyReelsV2LanguageEndpoint.fingerprint_inputs
        settings(Url="http://one", Key="secret")
        first = find(model="")
        assert find(model="") == first and "secret" not in first
        settings(Url="http://one", Key="other")
        assert find(model="") != first


def test_the_answers_before_a_failure_are_kept(run_prompt, look, give):
    probe = module("/host/probe")
    engine = ScriptedEngine(["One moves.", ValueError("the server is gone")])
    graph = enhancer(give(engine), "0s: one\n4s: two")
    for slot, name in enumerate(("prompt", "raw")):
        graph[name] = node("SkyReelsV2TestProbe", value=["2", slot], name=name)
    probe.SEEN.clear()
    result = run_prompt(graph)
    assert probe.SEEN == {"raw": "One moves."}
    assert "engine: the server is gone" in result.error["exception_message"]


def test_a_model_writes_the_same_for_the_same_seed(look, small_words, monkeypatch):
    nodes = module("nodes.words")
    short = dataclasses.replace(nodes.Enhancer().sampling, max_tokens=24)
    monkeypatch.setattr(nodes, "Enhancer", functools.partial(nodes.Enhancer, sampling=short))
    loader = node("SkyReelsV2LanguageModelLoader", language_model_name=small_words)
    texts = [
        look(enhancer(loader, "a cat", seed=seed, temperature=1.0), text=["2", 0])[0]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
