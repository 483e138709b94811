"""Shots captioned: what a model is asked, what is made of its answers, and what of its failures."""

import json

import pytest
import torch
from tiny_words import ScriptedEngine

from skyreels_model.words import EngineFailedError, NoAnswerError
from skyreels_model.words.captioning import (
    Settings,
    caption,
    caption_spans,
    escape_weights,
    look_at,
    shorten,
)
from skyreels_model.words.clips import ImageClip
from skyreels_model.words.cuts import Span

ANSWER = json.dumps({"subjects": [], "lighting": "Dim.", "camera_motion": "pans"})
FRAMES = torch.zeros(16, 8, 8, 3, dtype=torch.uint8)
CLIP = ImageClip(torch.zeros(240, 8, 8, 3), 24)


def quiet(_share):
    pass


def test_a_shot_is_asked_about_as_published():
    engine = ScriptedEngine([ANSWER])
    caption(FRAMES, Settings(engine, seed=7), quiet)
    ((message,), sampling), *_ = engine.asked
    assert (message.role, message.fps, sampling.seed) == ("user", 2.0, 7)
    assert message.pictures is FRAMES
    assert (sampling.temperature, sampling.max_tokens) == (0.05, 2048)
    assert sampling.schema["required"][0] == "subjects"
    for word in (
        "subjects",
        "TYPES",
        "sub_type",
        "extreme_close_up",
        "overlooking_view",
        "lighting",
    ):
        assert word in message.text


def test_a_single_frame_is_a_picture_and_more_are_a_clip():
    images = torch.rand(5, 8, 8, 3)
    assert look_at(ImageClip(images, 24), Span(2, 3, True)).shape == (1, 420, 360, 3)
    assert look_at(ImageClip(images, 24), Span(0, 5, True)).shape == (16, 420, 360, 3)
    engine = ScriptedEngine([ANSWER])
    caption(FRAMES[:1], Settings(engine), quiet)
    assert engine.asked[0][0][0].fps is None


def test_own_instructions_are_asked():
    engine = ScriptedEngine([ANSWER])
    caption(FRAMES, Settings(engine, instructions="Tell {all}."), quiet)
    assert engine.asked[0][0][0].text == "Tell {all}."


def test_an_answer_that_cannot_be_read_is_asked_for_again():
    engine = ScriptedEngine(["No.", "", ANSWER])
    found = caption(FRAMES, Settings(engine, seed=2**64 - 1), quiet)
    assert found.description.lighting == "Dim." and found.raw == ANSWER and len(found.notes) == 2
    assert [s.temperature for _, s in engine.asked] == [0.05, 0.4, 0.8]
    assert [s.seed for _, s in engine.asked] == [2**64 - 1, 0, 1]


def test_after_three_answers_that_cannot_be_read_it_is_an_error_with_the_last():
    engine = ScriptedEngine(["No.", "Why?", "A horse."])
    with pytest.raises(NoAnswerError, match=r"A horse\. \(asked 3 times\)") as caught:
        caption(FRAMES, Settings(engine), quiet)
    assert caught.value.raw == "A horse."


def test_or_its_text_is_the_caption():
    engine = ScriptedEngine(["No.", "", "A  horse (grey)."])
    found = caption(FRAMES, Settings(engine, if_unreadable="use the text"), quiet)
    assert found.t2v == found.i2v == "A horse \\(grey\\)." and found.raw == "A  horse (grey)."
    assert found.description.says_nothing and len(found.notes) == 3


def test_or_a_dash_where_there_is_no_text_either():
    """So that a film of a thousand shots is not lost to one of them."""
    engine = ScriptedEngine(["", "<think>hm</think>", ""])
    found = caption(FRAMES, Settings(engine, if_unreadable="use the text"), quiet)
    assert found.t2v == found.i2v == "-" and found.raw == "<think>hm</think>"
    assert len(found.notes) == 3


def test_thoughts_are_no_captions_and_stay_in_the_raw_answer():
    engine = ScriptedEngine(["<think>a {cat}?</think> " + ANSWER])
    found = caption(FRAMES, Settings(engine), quiet)
    assert found.t2v == "Dim. Pans." and found.raw.startswith("<think>")


def test_a_loop_is_cut_and_what_was_whole_is_kept():
    boat = json.dumps({"TYPES": {"type": "Vehicles", "sub_type": "Boat"}, "appearance": "Red."})
    looping = '{"lighting": "Dim.", "subjects": [' + (boat + ", ") * 60
    found = caption(FRAMES, Settings(ScriptedEngine([looping])), quiet)
    assert found.description.lighting == "Dim." and len(found.description.subjects) == 1
    assert found.notes == ("a loop in the answer was cut",)


def test_a_model_that_fuses_nothing_leaves_the_fields_joined():
    fusing = ScriptedEngine([""])
    found = caption(FRAMES, Settings(ScriptedEngine([ANSWER]), fusing), quiet)
    assert found.t2v == "Dim. Pans." and found.i2v == "- Pans."
    assert "were joined instead" in found.notes[0]


def test_a_model_without_eyes_is_refused():
    with pytest.raises(ValueError, match="reads text only"):
        caption(FRAMES, Settings(ScriptedEngine([ANSWER], sees_pictures=False)), quiet)


SHOTS = [Span(0, 60, True), Span(60, 240, True)]


def test_an_error_says_which_shot_it_was_and_leaves_those_before_it():
    engine, found = ScriptedEngine([ANSWER, "a", "b", "c"]), []
    with pytest.raises(NoAnswerError, match=r"shot 2 of 2, at 2\.5 s: .*c \(asked") as caught:
        list(caption_spans(CLIP, SHOTS, Settings(engine), lambda number: quiet))
    assert caught.value.raw == "c"
    engine = ScriptedEngine([ANSWER, ValueError("the server is gone")])
    with pytest.raises(EngineFailedError, match=r"^shot 2 of 2, at 2\.5 s: the server is gone$"):
        for one in caption_spans(CLIP, SHOTS, Settings(engine), lambda number: quiet):
            found.append(one.t2v)
    assert found == ["Dim. Pans."]


def test_an_engine_that_fails_is_not_asked_again():
    engine = ScriptedEngine([ValueError("the server is gone")] * 3)
    with pytest.raises(EngineFailedError, match="^the server is gone$"):
        caption(FRAMES, Settings(engine, if_unreadable="use the text"), quiet)
    assert len(engine.asked) == 1


def test_a_fusing_engine_that_fails_leaves_the_captioners_answer():
    fusing, told = ScriptedEngine([ValueError("gone")]), json.dumps({"environment": "A quay."})
    with pytest.raises(EngineFailedError, match="^fusion_engine: gone$") as caught:
        caption(FRAMES, Settings(ScriptedEngine([told]), fusing), quiet)
    assert caught.value.raw == told


def test_known_shots_are_not_looked_at_again():
    (known,) = caption_spans(CLIP, SHOTS[:1], Settings(ScriptedEngine([ANSWER])), lambda n: quiet)
    engine = ScriptedEngine([json.dumps({"lighting": "Bright."})])
    found = caption_spans(
        CLIP, SHOTS, Settings(engine, seed=1), lambda number: quiet, {SHOTS[0]: known}
    )
    assert [one.t2v for one in found] == ["Dim. Pans.", "Bright."]
    # With the seed that it has in the whole film.
    assert [sampling.seed for _, sampling in engine.asked] == [4]


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("One. Two. Three.", "One. Two."),
        ("One two three four", "One two"),
        ("a" * 30, "a" * 10),
        (" a \n b ", "a b"),
    ],
)
def test_long_texts_end_after_a_sentence_or_a_word(text, short):
    assert shorten(text, 10) == short


def test_brackets_of_a_caption_are_no_weights():
    assert escape_weights("a (red:1.5) \\(hat)") == "a \\(red:1.5\\) \\(hat\\)"
