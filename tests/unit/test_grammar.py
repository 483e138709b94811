"""Answers that keep to a schema from their first token, by the optional package llguidance."""

import json
import sys

import pytest
import torch
from tiny_words import write_model

from skyreels_model.words import Message, Sampling, grammar
from skyreels_model.words.description import Description, json_schema
from skyreels_model.words.network import open_model
from skyreels_model.words.qwen import QwenEngine
from skyreels_model.words.reading import read_description

pytest.importorskip("llguidance")
SAID = [Message("user", "Describe.")]
CHOICE = {
    "type": "object",
    "properties": {"shot": {"enum": ["close", "long"]}, "main": {"type": "boolean"}},
    "required": ["shot", "main"],
    "additionalProperties": False,
}


def hear(_piece):
    pass


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A random model, whose vocabulary has room for more tokens than its tokenizer knows."""
    folder = tmp_path_factory.mktemp("words") / "model"
    return QwenEngine(open_model(write_model(folder, "qwen2", vocab_size=288)), "tiny")


def shorten_texts(schema):
    """So that a random model comes to an end."""
    if isinstance(schema, list):
        return [shorten_texts(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: shorten_texts(one) for key, one in schema.items()}
    made |= {"maxLength": 4} if made.get("type") == "string" and "enum" not in made else {}
    return made | ({"maxItems": 2} if made.get("type") == "array" else {})


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0, 1.5])
def test_even_a_random_model_writes_what_the_schema_says(engine, temperature):
    sampling = Sampling(200, temperature, seed=3, schema=CHOICE)
    assert engine.constrains_json
    plain = engine.generate(SAID, Sampling(200, temperature, seed=3), hear)
    with pytest.raises(ValueError):
        json.loads(plain)
    found = [json.loads(engine.generate(SAID, sampling, hear)) for _ in range(2)]
    assert found[0] == found[1] and set(found[0]) == {"shot", "main"}
    assert found[0]["shot"] in ("close", "long") and isinstance(found[0]["main"], bool)


def test_a_description_needs_no_repair(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "json_repair", None)
    sampling = Sampling(1200, 1.0, seed=1, schema=shorten_texts(json_schema()))
    text = engine.generate(SAID, sampling, hear)
    assert list(json.loads(text)) == list(Description.model_fields)
    assert read_description(text).shot_type != ""


def test_white_space_has_an_end(engine):
    """Asked to like nothing better, the model still has to go on."""
    vocabulary = engine._vocabulary
    keep, tokens = vocabulary.keep_to(CHOICE), torch.zeros(1, 1, dtype=torch.long)
    # A new line and a space, as the vocabulary spells them.
    liked = engine.tokenizer.convert_tokens_to_ids(["\u010a", "\u0120"])
    written = []
    for _ in range(400):
        scores = torch.zeros(1, vocabulary.size)
        scores[0, liked] = 9
        written.append(int(keep(tokens, scores).argmax()))
        if written[-1] in engine._ends():
            break
        tokens = torch.cat([tokens, torch.tensor([written[-1:]])], 1)
    assert json.loads(engine.tokenizer.decode(written[:-1]))["shot"] == "close"


def test_a_schema_that_is_none_is_refused(engine):
    with pytest.raises(ValueError, match="the answer's schema is not read"):
        engine.generate(SAID, Sampling(schema={"type": "no such"}), hear)


def test_without_the_package_answers_are_free(engine, monkeypatch):
    monkeypatch.setattr(grammar.importlib.util, "find_spec", lambda _name: None)
    assert not grammar.can_constrain()
    monkeypatch.setattr(engine, "constrains_json", False)
    plain = engine.generate(SAID, Sampling(12, 0), hear)
    assert engine.generate(SAID, Sampling(12, 0, schema=CHOICE), hear) == plain
