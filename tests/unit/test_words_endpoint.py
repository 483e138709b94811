"""An endpoint of OpenAI's protocol: normal, slow, broken, lying; and cancelled."""

import base64
import io
import json
import socket

import pytest
import torch
from tiny_words.server import DONE, Server, event, piece

from skyreels_model.words import Message, Sampling
from skyreels_model.words import endpoint as module
from skyreels_model.words.endpoint import Endpoint, EndpointEngine
from skyreels_model.words.http_lines import EndpointError, Limits

HELLO = [Message("system", "Be brief."), Message("user", "Hello")]
QUICK = Limits(first=0.2, between=0.2)


def hear(_piece):
    pass


@pytest.fixture
def serve(monkeypatch):
    """`serve(answer)`: a running server."""
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    running = []

    def start(answer, **settings):
        running.append(Server(answer, **settings).__enter__())
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def say(*events):
    return lambda handler, _values, _number: handler.stream(*events)


def ask(server, messages=HELLO, sampling=None, heard=None, wait=lambda: None, **settings):
    engine = EndpointEngine(Endpoint(server.url, **settings), wait)
    on_token = hear if heard is None else heard.append
    return engine.generate(messages, sampling or Sampling(), on_token)


def test_a_stream_is_heard_piece_by_piece(serve):
    server, heard = serve(say(b": ping\n\n", piece("Hel"), piece(""), piece("lo"), DONE)), []
    sampling = Sampling(64, temperature=0.5, top_p=0.9, seed=2**40 + 3, stop=("END",))
    assert ask(server, sampling=sampling, heard=heard, key="secret", model="m") == "Hello"
    assert heard == ["Hel", "lo"]
    ((path, headers, values),) = server.seen
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert values == {
        "model": "m",
        "messages": [{"role": m.role, "content": m.text} for m in HELLO],
        "stream": True,
        "max_tokens": 64,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["END"],
    }


def test_without_a_key_none_is_sent_and_the_first_model_is_taken(serve):
    server = serve(say(piece("Hi", "stop")), models=("first", "second"))
    assert ask(server) == "Hi"
    assert [path for path, _, _ in server.seen] == ["/v1/models", "/v1/chat/completions"]
    assert server.seen[1][2]["model"] == "first"
    assert not any("Authorization" in headers for _, headers, _ in server.seen)


def test_an_answer_in_one_piece_is_taken_too(serve):
    body = json.dumps({"choices": [{"message": {"content": "Hello\nthere"}}]}, indent=1)
    server = serve(lambda handler, *_: handler.reply(200, body.encode()))
    assert ask(server, model="m") == "Hello\nthere"


def test_a_schema_is_sent_and_left_out_where_it_is_refused(serve):
    def answer(handler, values, number):
        if "response_format" in values:
            return handler.reply(400, b'{"error": "unknown response_format"}')
        return handler.stream(piece("{}"), DONE)

    server, schema = serve(answer), {"type": "object"}
    sampling = Sampling(schema=schema, top_k=5, repetition_penalty=1.1)
    assert ask(server, sampling=sampling, model="m") == "{}"
    first, second = (values for _, _, values in server.seen)
    sent = first["response_format"]["json_schema"]
    assert sent == {"name": "answer", "schema": schema, "strict": True}
    assert (first["top_k"], first["repetition_penalty"]) == (5, 1.1)
    assert set(second) == {"model", "messages", "stream", "max_tokens", "temperature"}


def decode(url):
    from PIL import Image

    kind, _, data = url.partition(";base64,")
    frames = [Image.open(io.BytesIO(base64.b64decode(one))) for one in data.split(",")]
    return kind, [(frame.size, frame.getpixel((5, 5))) for frame in frames]


@pytest.mark.parametrize("as_video", [False, True])
def test_pictures_are_sent_as_data(serve, as_video):
    server = serve(say(piece("Red.", "stop")))
    red = torch.zeros(2, 400, 500, 3)
    red[..., 0] = 1
    message = Message("user", "What?", red, fps=2.0)
    ask(server, [message], model="m", clips_as_video=as_video)
    *seen, text = server.seen[0][2]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What?"}
    kind = "video" if as_video else "image"
    assert [part["type"] for part in seen] == [f"{kind}_url"] * (1 if as_video else 2)
    pictures = [decode(part[f"{kind}_url"]["url"]) for part in seen]
    assert {name for name, _ in pictures} == {f"data:{kind}/jpeg"}
    frames = [frame for _, several in pictures for frame in several]
    assert [size for size, _ in frames] == [(500, 400)] * 2
    assert all(
        abs(a - b) < 4 for _, pixel in frames for a, b in zip(pixel, (255, 0, 0), strict=True)
    )


def test_large_pictures_are_made_smaller(serve):
    server = serve(say(piece("Big.", "stop")))
    ask(server, [Message("user", "?", torch.zeros(1, 2000, 4000, 3, dtype=torch.uint8))], model="m")
    part = server.seen[0][2]["messages"][0]["content"][0]
    ((width, height), _) = decode(part["image_url"]["url"])[1][0]
    assert width * height <= 1280 * 28 * 28 and abs(width / height - 2) < 0.01


def test_a_stop_text_ends_it_where_the_server_does_not(serve):
    server = serve(say(piece("One. E"), piece("ND two"), piece("three"), DONE))
    assert ask(server, sampling=Sampling(stop=("END",)), model="m") == "One. "


def test_a_busy_server_is_asked_again(serve):
    def answer(handler, _values, number):
        if number < 3:
            return handler.reply(503, b"loading")
        return handler.stream(piece("Hello"), DONE)

    server = serve(answer)
    assert ask(server, model="m") == "Hello" and len(server.seen) == 3


BROKEN = {
    "busy for ever": (lambda h, *_: h.reply(500, b"oh"), 3, "answered 500: oh"),
    "wrong key": (lambda h, *_: h.reply(401, b"no"), 1, "401; the key is missing or wrong: no"),
    "no such model": (lambda h, *_: h.reply(404, b""), 1, "404; the address .* without a word"),
    "moved": (lambda h, *_: h.reply(302, b""), 1, "302; redirects are not followed"),
    "a page": (lambda h, *_: h.reply(200, b"<html>Hi</html>"), 1, "other than OpenAI's.*<html>"),
    "other JSON": (lambda h, *_: h.reply(200, b'{"text": "x"}'), 1, "other than OpenAI's"),
    "a list": (lambda h, *_: h.reply(200, b"[1]"), 1, "other than OpenAI's"),
    "no text": (say(b'{"choices": [{"message": {"content": 5}}]}\n'), 1, "without an answer"),
    "nothing": (say(), 3, "broke off before the answer was complete"),
    "cut off": (say(piece("Hel")), 1, "broke off before the answer was complete"),
    "an error": (say(event({"error": {"message": "no memory"}})), 1, "with an error: no memory"),
    "half an event": (say(b'data: {"choices": [{"del\n\n'), 1, "other than OpenAI's"),
    "odd choices": (say(event({"choices": ["x"]})), 1, "other than OpenAI's"),
    "depths": (lambda h, *_: h.reply(200, b"[" * 10**5), 1, "other than OpenAI's"),
    "an event of depths": (say(b"data: " + b"[" * 10**5 + b"\n\n"), 1, "other than OpenAI's"),
    "not text": (say(b"\xff\xfe\x00\n"), 1, "other than OpenAI's"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_answer_is_an_error_and_not_an_answer(serve, name):
    answer, times, error = BROKEN[name]
    server = serve(answer)
    with pytest.raises(EndpointError, match=error):
        ask(server, model="m")
    assert len(server.seen) == times


def test_an_answer_without_end_is_cut(serve):
    """A server that does not keep to max_tokens."""

    def answer(handler, _values, _number):
        handler.stream()
        while True:
            handler.wfile.write(piece("word " * 10))

    assert len(ask(serve(answer), sampling=Sampling(max_tokens=10), model="m")) == 640


@pytest.mark.parametrize("begin", [(), (piece("Hel"),)], ids=["at once", "in the middle"])
def test_a_server_that_hangs_is_left(serve, begin):
    server = serve(lambda handler, *_: (handler.stream(*begin), server.release.wait(20)))
    with pytest.raises(EndpointError, match="did not go on for"):
        ask(server, model="m", limits=QUICK)


def test_a_server_that_drips_is_left(serve):
    def answer(handler, _values, _number):
        handler.stream()
        while not server.release.wait(0.02):
            handler.wfile.write(b": still there\n\n")

    server = serve(answer)
    with pytest.raises(EndpointError, match="did not come to an end"):
        ask(server, model="m", limits=Limits(total=0.3))


@pytest.mark.parametrize("begin", [(), (piece("Hel"),)], ids=["at once", "in the middle"])
def test_waiting_can_be_cancelled(serve, begin):
    server = serve(lambda handler, *_: (handler.stream(*begin), server.release.wait(20)))
    calls = []

    def cancel():
        calls.append(1)
        if len(calls) > 4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        ask(server, model="m", wait=cancel)


def test_hearing_can_be_cancelled(serve):
    server = serve(say(piece("Hel"), piece("lo"), DONE))
    engine = EndpointEngine(Endpoint(server.url, model="m"))

    def cancel(_piece):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        engine.generate(HELLO, Sampling(), cancel)


def test_a_server_that_is_not_there(serve):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    engine = EndpointEngine(Endpoint(url, model="m"))
    with pytest.raises(EndpointError, match="nothing answers at .* start the server"):
        engine.generate(HELLO, Sampling(), hear)


def test_a_server_without_models(serve):
    with pytest.raises(EndpointError, match="lists no model; name one"):
        ask(serve(say(piece("x", "stop")), models=()))


def test_a_list_of_models_has_an_end(serve, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LIST", 100)
    with pytest.raises(EndpointError, match="lists no model; name one"):
        ask(serve(say(piece("x", "stop")), models=["x" * 200]))


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://a/v1", "file:///etc/passwd", "http://a:b@c/v1", "http://[",
     "http://a/v1?key=b", "http://a/v1#b", "http://a/v1 b"],
)  # fmt: skip
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="the endpoint's address is .*http://localhost:8000/v1"):
        Endpoint(url)


@pytest.mark.parametrize(("model", "name"), [("", "the model"), ("mine", "mine")])
def test_the_address_is_not_in_its_name(model, name):
    engine = EndpointEngine(Endpoint("http://me.example:8000/v1", "secret", model))
    assert engine.name == f"{name} at the endpoint"


def test_the_key_is_not_shown():
    assert "secret" not in repr(Endpoint("http://a/v1", "secret"))


@pytest.mark.parametrize("url", ["http://me:secret@a/v1", "http://a/v1?key=secret"])
def test_nor_is_one_in_an_address(url):
    with pytest.raises(ValueError, match="the endpoint's address is 'http://") as caught:
        Endpoint(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["sec\nret", "sec\u2013ret", "sec\tret"])
def test_a_key_that_is_none_is_refused_unseen(key):
    with pytest.raises(ValueError, match="the endpoint's key has a line break or") as caught:
        Endpoint("http://a/v1", key)
    assert "sec" not in str(caught.value) and "ret" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 401])
def test_a_server_that_repeats_the_key_does_not_give_it_away(serve, status):
    def answer(handler, _values, _number):
        said = json.dumps({"error": handler.headers["Authorization"]})
        handler.reply(status, said.encode())

    with pytest.raises(EndpointError, match=r"Bearer \(the key\)") as caught:
        ask(serve(answer), model="m", key="a-secret")
    assert caught.value.__suppress_context__ and "secret" not in str(caught.value)
