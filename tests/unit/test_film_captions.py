"""A film's captions as a storyboard's text, and as JSON that is read back."""

import dataclasses
import json

import pytest
import torch
from tiny_words import ScriptedEngine

from skyreels_model.plan.storyboard import parse_storyboard
from skyreels_model.words import EngineFailedError, film
from skyreels_model.words.captioning import Settings, caption_spans
from skyreels_model.words.clips import ImageClip
from skyreels_model.words.cuts import Span
from skyreels_model.words.film import read_shots, write_shots, write_storyboard

ANSWER = json.dumps({"subjects": [], "lighting": "Dim.", "camera_motion": "pans"})
CLIP = ImageClip(torch.zeros(240, 8, 8, 3), 24)


def quiet(_share):
    pass


@pytest.mark.parametrize(
    "text",
    [
        "Plain.",
        "3: a list / 4s: of marks\n5s cut: and lines",
        "and/or / 0.5: this",
        "{a|b} (c) /",
        "at 10:30 / 11:30",
        "/ 7s: first",
        "\u732b\u304c / 3s: \u8d70\u308b",
    ],
)
def test_a_storyboard_of_any_captions_is_read_back(text):
    spans = [Span(0, 60, True), Span(60, 150, True), Span(150, 240, False)]
    written = write_storyboard(CLIP, spans, [text, text, text])
    shots = parse_storyboard(written, CLIP.second(240))
    assert [(shot.seconds, shot.cut) for shot in shots] == [
        (2.5, False),
        (3.75, True),
        (3.75, False),
    ]
    assert len({shot.prompt for shot in shots}) == 1
    assert set(shots[0].prompt) - set(", ") == set(text) - set("/, \n") | set(shots[0].prompt) & {
        "/"
    }


def test_many_long_captions_are_a_legal_storyboard(monkeypatch):
    """Each a legal prompt, and all of them not longer than a text may be."""
    monkeypatch.setattr(film, "MAX_LENGTH", 50_000)
    spans = [Span(index, index + 1, True) for index in range(100)]
    clip = ImageClip(torch.zeros(100, 1, 1, 1), 1)
    written = write_storyboard(clip, spans, ["A long sentence of a caption. " * 200] * 100)
    shots = parse_storyboard(written, 100)
    assert len(shots) == 100 and 45_000 < len(written) <= 50_000
    assert all(shot.prompt.endswith("caption.") for shot in shots)
    assert len(write_storyboard(clip, spans[:1], ["word " * 5000])) < 2500


SPANS = [Span(0, 60, True), Span(60, 240, False)]


def caption_all(engine):
    return list(caption_spans(CLIP, SPANS, Settings(engine), lambda number: quiet))


def test_what_is_known_of_shots_is_json():
    captions = caption_all(ScriptedEngine([ANSWER, ANSWER]))
    first, second = json.loads(write_shots(CLIP, SPANS, captions))
    assert (first["start"], first["end"], second["end"]) == (0, 2.5, 10)
    assert (first["cut"], second["cut"]) == (True, False)
    assert first["description"]["lighting"] == "Dim." and first["raw"] == ANSWER
    assert first["t2v"] == "Dim. Pans."


def test_what_was_made_before_an_error_is_read_back():
    captions = caption_all(ScriptedEngine(["{} \u732b", "", ANSWER, ANSWER]))
    text = write_shots(CLIP, SPANS, captions[:1], EngineFailedError("gone", "half an"))
    told = json.loads(text)[1]
    assert told == {"start": 2.5, "end": 10, "cut": False, "error": "gone", "raw": "half an"}
    assert read_shots(text, CLIP, SPANS) == {SPANS[0]: captions[0]}
    assert read_shots(text, CLIP, [Span(0, 61, True)]) == {}  # it ends elsewhere
    whole = write_shots(CLIP, SPANS, captions)
    assert read_shots(whole, CLIP, SPANS) == dict(zip(SPANS, captions, strict=True))
    edited = whole.replace("Dim. Pans.", "Dusk.")
    assert [one.t2v for one in read_shots(edited, CLIP, SPANS).values()] == ["Dusk.", "Dusk."]
    assert read_shots(" ", CLIP, SPANS) == {}


def test_no_address_of_a_server_is_written():
    """The text is for an input, and so for a workflow."""
    url = "http://me.example:8000/v1/chat"
    captions = caption_all(ScriptedEngine([ANSWER, ANSWER]))
    noted = dataclasses.replace(captions[0], notes=(f"{url} was slow",))
    text = write_shots(CLIP, SPANS, [noted], EngineFailedError(f"{url} answered 500: no", ""))
    assert "me.example" not in text and "the endpoint answered 500: no" in text
    assert "the endpoint was slow" in text


@pytest.mark.parametrize(
    "text", ["a film", "{}x", "[1]", "5", '[{"start": 0, "end": 2.5}]', "[" * 100000, "null", '"a"']
)
def test_a_text_that_is_none_of_shots_is_refused(text):
    with pytest.raises(ValueError, match="^known_shots is .* it must be the text of an earlier"):
        read_shots(text, CLIP, SPANS)
