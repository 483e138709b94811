"""What captioners write, read as a description of a shot, and made a caption of."""

import builtins
import json

import pytest
from tiny_words import ScriptedEngine

from skyreels_model.words import NoAnswerError
from skyreels_model.words.description import Description, json_schema
from skyreels_model.words.fusion import clean, fuse, motion_sentence, tell_shot, tell_subjects
from skyreels_model.words.reading import read_description

# In the shape of a published answer, with other content.
HORSE = {
    "subjects": [
        {
            "TYPES": {"type": "Animal", "sub_type": "Horse"},
            "appearance": "A grey coat and a {braided} mane.",
            "action": "A horse trots along a beach and shakes its head.",
            "expression": "Alert, with its ears up.",
            "position": "In the middle, moving to the right.",
            "is_main_subject": True,
        },
        {
            "TYPES": {"type": "Vehicles", "sub_type": "Boat"},
            "appearance": "A small red hull.",
            "action": "",
            "expression": "Calm.",
            "position": "Far behind the horse.",
            "is_main_subject": False,
        },
        {
            "TYPES": {"type": "Human", "sub_type": "Accessory"},
            "appearance": "A leather saddle.",
            "action": "",
            "expression": "Shiny.",
            "position": "On the horse.",
            "is_main_subject": False,
        },
    ],
    "shot_type": "full_shot",
    "shot_angle": "eye_level",
    "shot_position": "side_view",
    "camera_motion": "the camera follows to the right",
    "environment": "A wide beach at low tide.",
    "lighting": "Soft light of the evening.",
}
WHOLE = json.dumps(HORSE)
EMPTY = Description().model_dump()


def read(text):
    return read_description(text).model_dump()


def horse(**changed):
    return Description.model_validate(HORSE | changed)


def test_a_published_answer_is_read_field_by_field():
    assert read(WHOLE) == HORSE
    assert json.loads(read_description(WHOLE).to_json()) == HORSE
    assert list(json.loads(read_description(WHOLE).to_json())) == list(HORSE)


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{json.dumps(HORSE, indent=2)}\n```",
        f"Here is {{the}} JSON you wanted: {WHOLE} I hope {{it}} helps!",
        f"\ufeff{WHOLE}",
        json.dumps([HORSE]),
        json.dumps({"caption": HORSE}),
        f"{{}}{WHOLE}",
        WHOLE.replace("}, {", "},, {").replace('tide."', 'tide.",'),
        WHOLE.replace('"', "'"),
        WHOLE.replace("true", "True").replace("false", "False"),
        WHOLE[:-1] + ",}",
        WHOLE.replace(": ", ":\n"),
        WHOLE[:-1],
        WHOLE[:-2],
    ],
)
def test_what_stands_around_or_is_broken_in_json_is_mended(text):
    assert read(text) == HORSE


@pytest.mark.parametrize("length", range(150, len(WHOLE), 61))
def test_an_answer_that_ends_anywhere_keeps_what_is_whole(length):
    found = read(WHOLE[:length])
    for whole, part in zip(HORSE["subjects"], found["subjects"], strict=False):
        assert whole["appearance"].startswith(part["appearance"])
        assert whole["action"].startswith(part["action"])
    assert found["camera_motion"] in HORSE["camera_motion"]


@pytest.mark.parametrize(
    "text",
    ["", "A horse on a beach.", "{", "{}", '{"a": 1}', "[1, 2]", '{"lighting": ""}', "{" * 3000,
     '{"subjects": [{"TYPES": {"type": "Human"}}]}', '{"lighting":' + "[" * 3000],
)  # fmt: skip
def test_an_answer_without_a_description_is_an_error_with_its_text(text):
    with pytest.raises(NoAnswerError, match="captioner's answer has") as caught:
        read_description(text)
    assert caught.value.raw == text


def test_broken_json_without_the_package_that_mends_it_says_how_to_get_it(monkeypatch):
    original = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "json_repair":
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert read(WHOLE) == HORSE
    with pytest.raises(NoAnswerError, match="pip install json-repair"):
        read_description(WHOLE[:-1])


@pytest.mark.parametrize(
    ("given", "read_as"),
    [
        ("Close-Up", "close_up"),
        ("extreme close up shot", "extreme_close_up"),
        ("medium", "medium_shot"),
        ("wide shot", "long_shot"),
        ("dolly", "other"),
        ("N/A", ""),
        (None, ""),
        (["long_shot"], "long_shot"),
    ],
)
def test_options_in_other_words_are_the_published_ones(given, read_as):
    assert Description.model_validate({"shot_type": given}).shot_type == read_as


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("a\nb\t c\0", "a b c"),
        ("lone \ud83d half", "lone \ufffd half"),
        (["red", "wet"], "red, wet"),
        ({"place": "a room"}, "a room"),
        (3, "3"),
        (True, ""),
        ("None.", ""),
        ("{x} (y) <z>", "{x} (y) <z>"),
        ("\u732b\u304c\u8d70\u308b", "\u732b\u304c\u8d70\u308b"),
    ],
)
def test_a_field_is_one_line_of_clean_text(given, text):
    found = Description.model_validate({"environment": given})
    assert found.environment == text
    found.to_json().encode()


def test_subjects_that_a_loop_repeats_are_there_once():
    boat = HORSE["subjects"][1]
    broken_off = {"TYPES": boat["TYPES"], "appearance": "A small r"}
    found = horse(subjects=[boat, boat, HORSE["subjects"][0], boat, broken_off])
    assert [one.TYPES.sub_type for one in found.subjects] == ["Boat", "Horse"]


def test_the_schema_wants_every_field_and_one_of_the_published_options():
    schema = json_schema()
    assert schema["required"] == list(HORSE)
    assert schema["$defs"]["Subject"]["required"] == list(HORSE["subjects"][0])
    assert schema["properties"]["shot_angle"]["enum"] == [
        "eye_level",
        "high_angle",
        "low_angle",
        "other",
    ]


def test_fields_of_a_t2v_caption_are_cleaned_as_published():
    horse_fields, boat, saddle = HORSE["subjects"]
    keep = ("appearance", "action", "position")
    assert clean(horse(), "t2v") == {
        "num_subjects": 3,
        "subjects": [
            {k: horse_fields[k] for k in (*keep, "expression")} | {"name": "Horse"},
            {k: boat[k] for k in keep} | {"expression": "", "name": "Boat"},
            {k: saddle[k] for k in keep} | {"expression": "", "name": "Accessory"},
        ],
        **{k: HORSE[k] for k in ("shot_type", "shot_angle", "shot_position")},
        **{k: HORSE[k] for k in ("environment", "lighting")},
    }


def test_fields_of_an_i2v_caption_are_what_happens():
    horse_fields = HORSE["subjects"][0]
    kept = {k: horse_fields[k] for k in ("action", "expression")} | {"name": "Horse"}
    assert clean(horse(), "i2v") == {"num_subjects": 1, "subjects": [kept]}


def test_fields_are_dropped_by_seed_one_in_ten_and_never_without_one():
    told = horse()
    whole, counts = clean(told, "t2v"), {"appearance": 0, "position": 0, "lighting": 0}
    for seed in range(400):
        found = clean(told, "t2v", seed)
        assert found == clean(told, "t2v", seed)
        for name in ("appearance", "position"):
            counts[name] += sum(name not in one for one in found["subjects"])
        counts["lighting"] += "lighting" not in found
    assert clean(told, "t2v") == whole
    assert 80 < counts["appearance"] < 160 and 80 < counts["position"] < 160  # of 1200
    assert 20 < counts["lighting"] < 60  # of 400


@pytest.mark.parametrize(
    ("motion", "sentence"),
    [
        ("", ""),
        ("the camera pans", "The camera pans."),
        ("it follows Anna.", "It follows Anna."),
    ],
)
def test_the_cameras_motion_is_a_sentence(motion, sentence):
    assert motion_sentence(horse(camera_motion=motion)) == sentence


def test_fields_joined_are_sentences_in_the_published_order():
    assert fuse(horse(), "t2v") == (
        "Full shot, at eye level, seen from the side. A horse trots along a beach and shakes its "
        "head. A grey coat and a {braided} mane. Alert, with its ears up. In the middle, moving to "
        "the right. Boat: A small red hull. Far behind the horse. Accessory: A leather saddle. On "
        "the horse. A wide beach at low tide. Soft light of the evening. The camera follows to the "
        "right."
    )
    assert fuse(horse(), "i2v") == (
        "A horse trots along a beach and shakes its head. Alert, with its ears up. The camera "
        "follows to the right."
    )


@pytest.mark.parametrize("manner", ["t2v", "i2v"])
def test_a_model_writes_the_caption_and_the_cameras_motion_follows(manner):
    engine = ScriptedEngine([" A grey horse\ntrots {by}. \n\nNever said."])
    assert fuse(horse(), manner, engine, seed=5).startswith("A grey horse trots {by}.")
    (messages, sampling), *_ = engine.asked
    assert json.loads(messages[-1].text) == clean(horse(), manner)
    assert "camera" not in messages[-1].text and "{braided}" in messages[-1].text + "{braided}"
    published = (0.1, 512, ("\n\n",), 5)
    assert (sampling.temperature, sampling.max_tokens, sampling.stop, sampling.seed) == published


def test_without_subjects_the_caption_is_a_dash_and_the_cameras_motion():
    empty = Description(camera_motion="pans left")
    assert fuse(empty, "t2v") == fuse(empty, "i2v") == "- Pans left."
    engine = ScriptedEngine([])
    assert fuse(empty, "t2v", engine) == "- Pans left." and not engine.asked


def test_a_shot_of_a_place_keeps_it_where_the_published_code_loses_it():
    place = Description(environment="a forest", shot_type="other", camera_motion="pans left")
    assert fuse(place, "t2v") == "A forest. Pans left."
    assert fuse(place, "i2v") == "- Pans left."


def test_single_fields_are_told_in_words():
    assert tell_shot(horse()) == "full shot, at eye level, seen from the side"
    assert tell_shot(horse(shot_angle="other")) == "full shot, seen from the side"
    subjects = list(reversed(HORSE["subjects"]))
    lines = tell_subjects(horse(subjects=subjects))
    assert [line.split()[0] for line in lines] == ["A", "Accessory:", "Boat:"]
