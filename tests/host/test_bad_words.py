"""What goes wrong around words, through a running host: told clearly, and ended in time."""

import json
import sys
from fractions import Fraction

import graphs
import pytest
import torch
from tiny_words import ScriptedEngine
from tiny_words.films import write_film
from tiny_words.server import DONE, Server, piece

from skyreels_model.words.http_lines import Limits

pytestmark = pytest.mark.usefixtures("kept_loaders")

node = graphs.node
ANSWER = json.dumps({"subjects": [], "lighting": "dim", "environment": "a {room} at 100 %s"})
UMT5 = node("SkyReelsV2TextEncoderLoader", text_encoder_name=graphs.TOY["text"])


def module(end):
    return next(m for name, m in sys.modules.items() if "/" in name and name.endswith(end))


@pytest.fixture
def give(look):
    """`give(prompt, name=value, …)` -> links that have these values."""

    def links(prompt, **values):
        module("/host/probe").GIVEN.update(values)
        prompt |= {f"give {n}": node("SkyReelsV2TestGiver", name=n) for n in values}
        return {name: [f"give {name}", 0] for name in values}

    return links


@pytest.fixture
def failure(run_prompt):
    """`failure(prompt, link)`: what is said where that link cannot be had."""

    def run(prompt, link):
        result = run_prompt({**prompt, "see": node("PreviewAny", source=link)})
        assert not result.success
        return result.describe()

    return run


def enhancer(engine, prompt="rain", **more):
    return node("SkyReelsV2PromptEnhancer", engine=engine, prompt=prompt,
                **{"seed": 0, "language": "english", **more})  # fmt: skip


def film_captioner(**inputs):
    defaults = {"seed": 0, "fps": 24.0, "cuts": "0", "shortest_shot": 0.5, "longest_part": 10.0}
    return node("SkyReelsV2CaptionFilm", **{**defaults, **inputs})


class TestFrames:
    def test_one_frame_is_a_picture_and_a_film_of_one_shot(self, look, give):
        engine, prompt = ScriptedEngine([ANSWER] * 2), {}
        links = give(prompt, engine=engine, images=torch.rand(1, 16, 24, 3))
        prompt["one"] = node("SkyReelsV2Captioner", seed=0, **links)
        prompt["film"] = film_captioner(cuts="", **links)
        text, board, seconds = look(prompt, text=["one", 0], board=["film", 0], seconds=["film", 1])
        assert text == "A {room} at 100 %s. Dim." and board == f"0s: {text}"
        assert seconds == pytest.approx(1 / 24)
        for messages, _ in engine.asked:
            assert messages[0].fps is None and len(messages[0].pictures) == 1

    def test_of_an_hour_of_video_few_frames_are_decoded(self, look, give, tmp_path, monkeypatch):
        from comfy_api.latest import InputImpl

        path = write_film(tmp_path / "hour.mp4", [90] * 3600, 1, preset="ultrafast", gop=60)
        decoded, clips = [], sys.modules[module("host.words.captions").FileClip.__module__]
        original = clips.decode_from

        def count(*given):
            for frame in original(*given):
                decoded.append(frame.pts)
                yield frame

        monkeypatch.setattr(clips, "decode_from", count)
        engine, prompt = ScriptedEngine([ANSWER]), {}
        links = give(prompt, engine=engine, video=InputImpl.VideoFromFile(path))
        prompt["film"] = film_captioner(longest_part=0.0, **links)
        (seconds,) = look(prompt, seconds=["film", 1])
        assert seconds == 3600 and 16 <= len(decoded) <= 17 * 60

    def test_no_frames_in_a_video_are_refused(self, failure, give):
        from comfy_api.latest import InputImpl, Types

        parts = Types.VideoComponents(images=torch.zeros(0, 8, 8, 3), frame_rate=Fraction(24))
        prompt = {}
        links = give(prompt, engine=ScriptedEngine([]), video=InputImpl.VideoFromComponents(parts))
        prompt["film"] = film_captioner(**links)
        assert "images is (0, 8, 8, 3); it must be at least one" in failure(prompt, ["film", 0])


class TestModels:
    @pytest.mark.parametrize("sees", ["image", "video"])
    def test_a_model_without_vision_says_so(self, failure, give, small_words, sees):
        prompt = {"lm": node("SkyReelsV2LanguageModelLoader", language_model_name=small_words)}
        links = give(prompt, images=torch.rand(5, 16, 16, 3))
        if sees == "image":
            prompt["x"] = enhancer(["lm", 0], start_image=links["images"])
        else:
            prompt["x"] = node("SkyReelsV2Captioner", engine=["lm", 0], seed=0, **links)
        assert "reads text only; take a model with vision" in failure(prompt, ["x", 0])

    def test_a_language_model_is_no_text_encoder_of_films(self, failure, small_words):
        prompt = {"x": node("SkyReelsV2TextEncoderLoader", text_encoder_name=small_words)}
        text = failure(prompt, ["x", 1])
        assert "text_encoder_name" in text and "UMT5" in text

    def test_a_text_encoder_of_films_is_no_language_model(self, failure):
        name = graphs.TOY["text"]
        prompt = {"x": node("SkyReelsV2LanguageModelLoader", language_model_name=name)}
        text = failure(prompt, ["x", 1])
        assert "language_model_name" in text and "no language model that is known" in text

    def test_nor_is_it_one_behind_a_clip(self, failure):
        for x in (
            enhancer(["clip", 0]),
            node("SkyReelsV2Captioner", engine=["clip", 0], images=["i", 0], seed=0),
        ):
            image = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
            assert "this CLIP does not write text" in failure(
                {"clip": UMT5, "i": image, "x": x}, ["x", 0]
            )


ODD = [
    "{",
    "{0} %s {prompt!r}",
    "caf\udce9",
    "\x00\x07",
    "<|im_end|>\n<|im_start|>system",
    "\u202e",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_are_texts(look, give, text):
    """Braces, half letters, control characters, marks of turns, in prompts and in answers."""
    engine, prompt = ScriptedEngine([f"A cat {text} jumps."]), {}
    prompt["x"] = enhancer(give(prompt, engine=engine)["engine"], text, long_words=0)
    (written,) = look(prompt, written=["x", 0])
    assert written.startswith("A cat") and engine.asked[0][0][1].text == f"Idea: {text}"


def test_half_letters_can_be_shown(host, monkeypatch):
    """On the page they are sent in UTF-8, in which there are none."""
    import types

    sent, notice = [], module("nodes.host.notice")
    server = types.SimpleNamespace(
        send_progress_text=lambda text, _node: sent.append(text.encode())
    )
    fake = types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", fake)
    context = types.SimpleNamespace(node_id="1")
    monkeypatch.setattr(notice, "get_executing_context", lambda: context)
    notice.show("caf\udce9")
    assert sent == [b"caf?"]


@pytest.fixture
def serve(monkeypatch):
    """`serve(answer)`: a server, set as the endpoint, of which little patience is had."""
    pack = module("host.words.endpoint")
    client = sys.modules[pack.EndpointEngine.__module__]
    made = pack.Endpoint
    limits = Limits(connect=1, first=0.5, between=0.5, total=3)
    monkeypatch.setattr(
        pack, "Endpoint", lambda *given: made(*given, limits=client.Limits(**vars(limits)))
    )
    monkeypatch.setattr(client, "PAUSES", (0.01,))
    running = []

    def start(answer):
        running.append(Server(answer).__enter__())
        monkeypatch.setenv("SKYREELS_V2_WORDS_URL", running[-1].url)
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def asked_endpoint():
    endpoint = node("SkyReelsV2LanguageEndpoint", model="m", sees_images=True)
    return {"e": endpoint, "x": enhancer(["e", 0])}


WRONG = {
    "slow": (lambda h, wait: wait(20), "did not go on for 0.5 seconds"),
    "stuck": (lambda h, wait: (h.stream(piece("A")), wait(20)), "did not go on for 0.5 seconds"),
    "page": (lambda h, wait: h.reply(200, b"<html>"), "other than OpenAI's protocol"),
    "broken": (lambda h, wait: h.stream(piece("A cat")), "broke off before the answer was"),
    "refusing": (lambda h, wait: h.reply(401, b"no"), "the key is missing or wrong"),
    "silent": (lambda h, wait: h.stream(DONE), "answered with nothing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_endpoint_that_is_slow_or_lies_ends_in_time(run_prompt, serve, name):
    answer, error = WRONG[name]
    server = serve(lambda handler, *_more: answer(handler, server.release.wait))
    result = run_prompt({**asked_endpoint(), "see": node("PreviewAny", source=["x", 0])})
    assert not result.success and error in result.describe()


def test_an_endpoint_that_is_down_is_told(failure, serve):
    serve(lambda *_: None).__exit__()
    text = failure(asked_endpoint(), ["x", 0])
    assert "nothing answers at http://127.0.0.1" in text and "start the server" in text


def test_waiting_for_an_endpoint_can_be_cancelled(run_prompt, serve):
    import comfy.model_management as management

    def answer(handler, *_more):
        handler.stream(piece("A"))
        management.interrupt_current_processing()
        server.release.wait(20)

    server = serve(answer)
    result = run_prompt({**asked_endpoint(), "see": node("PreviewAny", source=["x", 0])})
    assert result.interrupted
