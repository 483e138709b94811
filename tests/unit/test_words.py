"""What all engines share: messages, sampling, and answers without thoughts and loops."""

import pytest
import torch
from tiny_words import ScriptedEngine

from skyreels_model.words import Message, NoAnswerError, Sampling, ask
from skyreels_model.words.tidy import cut_loop, drop_thoughts

SENTENCE = "A man walks along the quay while gulls circle above the boats. "
HELLO = [Message("user", "Hello")]


def hear(_piece):
    pass


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("plain words", "plain words"),
        ("<think>which?\n</think>\n\nA cat.", "A cat."),
        ("<thinking>so</thinking>A <think>or</think>cat.", "A cat."),
        ("which one? </think> A cat.", "A cat."),
        ("<think>never ends", ""),
        ("a < think > is no thought", "a < think > is no thought"),
    ],
)
def test_thoughts_are_dropped(text, rest):
    assert drop_thoughts(text) == rest


@pytest.mark.parametrize("ending", ["", "A man walks", "A man walks along the quay while"])
def test_a_loop_keeps_one_round(ending):
    start = "It is dawn. "
    assert cut_loop(start + 5 * SENTENCE + ending).rstrip() == (start + SENTENCE).rstrip()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ha ha ha ha ha",  # short: a laugh
        3 * SENTENCE,  # a refrain
        " ".join(f"A boat with the number {n} passes." for n in range(30)),
        '{"a": [[[[]]]]}',
    ],
)
def test_what_only_looks_like_a_loop_stays(text):
    assert cut_loop(text) == text


def test_a_loop_ends_the_engines_work_at_once():
    engine = ScriptedEngine(["It is dawn. " + 200 * SENTENCE])
    heard = []
    answer = ask(engine, HELLO, Sampling(max_tokens=2048), heard.append)
    assert answer.looped
    assert answer.text == ("It is dawn. " + SENTENCE).strip()
    assert len(heard) < 80


def test_every_token_is_handed_on_and_the_raw_answer_kept():
    engine, heard = ScriptedEngine(["<think>hm</think> A  cat.\n"]), []
    answer = ask(engine, HELLO, Sampling(), heard.append)
    assert (answer.text, answer.raw, answer.looped) == ("A  cat.", "".join(heard), False)


def test_what_on_token_raises_ends_the_work():
    calls = []

    def cancel(piece):
        calls.append(piece)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(ScriptedEngine(["one two three"]), HELLO, Sampling(), cancel)
    assert calls == ["one "]


@pytest.mark.parametrize(
    ("answer", "why"), [("", "nothing"), (" \n ", "nothing"), ("<think>on and on", "only thought")]
)
def test_an_answer_without_words_is_an_error_that_keeps_them(answer, why):
    with pytest.raises(NoAnswerError, match=f"the scripted engine .*{why}") as caught:
        ask(ScriptedEngine([answer]), HELLO, Sampling(), hear)
    assert caught.value.raw.strip() == answer.strip()


def test_pictures_are_refused_by_who_cannot_see():
    engine = ScriptedEngine(["never"], sees_pictures=False)
    message = Message("user", "What is this?", torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="reads text only"):
        ask(engine, [message], Sampling(), hear)
    assert not engine.asked


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"role": "tool", "text": ""}, "role is 'tool'; it must be one of"),
        ({"role": "user", "text": None}, "text is None"),
        ({"role": "user", "text": "", "pictures": torch.zeros(8, 8, 3)}, "pictures is"),
        ({"role": "user", "text": "", "pictures": torch.zeros(0, 8, 8, 3)}, "pictures is"),
        ({"role": "user", "text": "", "pictures": torch.zeros(1, 8, 8, 4)}, "pictures is"),
        (
            {"role": "user", "text": "", "pictures": torch.full((1, 8, 8, 3), float("nan"))},
            "pictures is 'not finite'",
        ),
        ({"role": "user", "text": "", "fps": 0}, "fps is 0"),
    ],
)
def test_messages_that_are_none(given, error):
    with pytest.raises(ValueError, match=error):
        Message(**given)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 2.5}, "nearest: 2"),
        ({"top_p": 0}, "top_p is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_sampling_that_is_none(given, error):
    with pytest.raises(ValueError, match=error):
        Sampling(**given)
