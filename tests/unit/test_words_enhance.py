"""The prompt enhancer: what a model is told, and what becomes of its answer."""

import dataclasses
import re

import pytest
import torch
from tiny_words import ScriptedEngine

from skyreels_model.plan.storyboard import parse_storyboard
from skyreels_model.words import NoAnswerError, Sampling, ask
from skyreels_model.words.enhance import (
    FILE,
    LONG,
    MOST_WORDS,
    PARTS,
    Enhancer,
    count_calls,
    count_words,
    read_parts,
    tidy_prompt,
)

LONG_TEXT = "A medium shot at eye level. " + "A red ball rolls to the right. " * 10
BOARD = "0s: a street at dawn / 2.5s: rain sets in / 9s cut: inside {a} cafe"


def enhance(text, *answers, **settings):
    """The enhanced text, and what the engine was asked: pairs of system and user text."""
    engine = ScriptedEngine(list(answers))
    made = Enhancer(**settings).enhance(
        text, lambda messages, sampling: ask(engine, messages, sampling, lambda piece: None)
    )
    return made, engine


def asked(engine):
    return [(messages[0].text, messages[1].text) for messages, _ in engine.asked]


def test_a_short_prompt_is_written_out():
    made, engine = enhance("a cat {jumps}", "A close-up. The cat jumps.")
    assert made == "A close-up. The cat jumps."
    ((system, user),) = asked(engine)
    parts = read_parts()
    assert system == f"{parts['task']}\n\n{parts['english']}"
    assert user == "Idea: a cat {jumps}"


def test_a_long_prompt_passes_and_nobody_is_asked():
    assert count_words(LONG_TEXT) >= LONG
    made, engine = enhance(LONG_TEXT)
    assert made == LONG_TEXT.strip() and not engine.asked


def test_a_long_prompt_is_written_out_where_it_is_wanted():
    made, _ = enhance(LONG_TEXT, "Short.", long_words=0)
    assert made == "Short."


def test_brackets_of_an_answer_are_no_weights():
    made, _ = enhance("a cat", "A cat (red:1.5) jumps.")
    assert made == "A cat \\(red:1.5\\) jumps."


def test_language_picture_and_the_shot_before_are_told():
    picture = torch.zeros(1, 8, 8, 3)
    _, engine = enhance(
        "sie springt", "Gut.", language="as written", picture=picture, previous="A cat sits."
    )
    ((system, user),) = asked(engine)
    parts = read_parts()
    named = ("task", "as written", "picture", "after a shot")
    assert system == "\n\n".join(parts[name] for name in named)
    assert user == "The shot before: A cat sits.\n\nIdea: sie springt"
    assert engine.asked[0][0][1].pictures is picture


def test_a_picture_needs_no_words_and_an_empty_prompt_without_one_is_refused():
    made, _ = enhance(" ", "The cat jumps.", picture=torch.zeros(1, 8, 8, 3))
    assert made == "The cat jumps."
    with pytest.raises(ValueError, match="prompt is empty"):
        enhance(" ")


def test_a_storyboard_keeps_its_form_and_each_shot_knows_the_one_before():
    answers = ["A street. Dawn.", "Rain falls / hard.\n3s: It pours.", "A cafe. 12 / 9s: guests."]
    made, engine = enhance(BOARD, *answers, picture=torch.zeros(1, 8, 8, 3))
    before, after = (parse_storyboard(text, 12) for text in (BOARD, made))
    assert [(s.seconds, s.cut) for s in after] == [(s.seconds, s.cut) for s in before]
    assert [shot.prompt.split(".")[0] for shot in after] == [
        "A street", "Rain falls, hard", "A cafe"]  # fmt: skip
    parts, told = read_parts(), asked(engine)
    assert "The shot before" not in told[0][1]
    assert told[1][1].startswith("The shot before: A street. Dawn.\n")
    assert told[2][1].startswith("The shot before: Rain falls, hard.")
    assert parts["after a shot"] in told[1][0] and parts["after a cut"] in told[2][0]
    # The picture is where the film begins.
    assert [m[1].pictures is not None for m, _ in engine.asked] == [True, False, False]


def test_a_long_shot_stays_and_the_next_one_knows_it():
    made, engine = enhance(f"0s: {LONG_TEXT}\n4s: it stops", "The ball stops.")
    assert made == f"0s: {LONG_TEXT.strip()}\n4s: The ball stops."
    assert asked(engine)[0][1] == f"The shot before: {LONG_TEXT.strip()}\n\nIdea: it stops"


def test_calls_are_counted_for_progress():
    assert (count_calls("a cat"), count_calls(BOARD)) == (1, 3)


def test_a_storyboard_that_is_none_is_refused_before_anyone_is_asked():
    with pytest.raises(ValueError, match="each shot must begin before"):
        enhance("0s: a\n5s: b\n3s: c")


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ('"A cat jumps."', "A cat jumps."),
        ("Prompt: A cat jumps.", "A cat jumps."),
        ("Enhanced prompt:\n\nA cat\njumps.", "A cat jumps."),
        ("Sure! Here is the prompt:\n\n**A cat** jumps.", "A cat jumps."),
        ("```text\nA cat jumps.\n```", "A cat jumps."),
        ("# A cat\nIt jumps.", "A cat It jumps."),
        ('"Jump," she says. "Now."', '"Jump," she says. "Now."'),
        ("A cat jumps. It lands on the", "A cat jumps."),
        ("A cat that jumps and", "A cat that jumps and"),
        ("The camera moves 3.5 m to the left. It", "The camera moves 3.5 m to the left."),
        ("\u732b\u304c\u98db\u3076\u3002\u732b", "\u732b\u304c\u98db\u3076\u3002"),
    ],
)
def test_answers_become_one_paragraph_of_whole_sentences(answer, prompt):
    assert tidy_prompt(answer) == prompt


def test_a_prompt_is_no_longer_than_the_text_encoder_reads():
    made = tidy_prompt("A red ball rolls to the right. " * 100)
    assert MOST_WORDS - 7 < count_words(made) <= MOST_WORDS and made.endswith("right.")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", 0), ("it's 3 o'clock", 5), ("a - b", 2), ("\u732b\u304c\u98db\u3076", 2)],
)
def test_words_are_counted(text, words):
    assert count_words(text) == words


def test_the_same_seed_is_asked_for_at_every_shot():
    sampling = dataclasses.replace(Enhancer().sampling, seed=5)
    _, engine = enhance(BOARD, "A.", "B.", "C.", sampling=sampling)
    assert [given.seed for _, given in engine.asked] == [5, 5, 5]


@pytest.mark.parametrize("answer", ["<think>what?</think>", "Prompt:", "```\n```", "**"])
def test_an_empty_answer_is_an_error_not_an_empty_prompt(answer):
    with pytest.raises(NoAnswerError) as caught:
        enhance("a cat", answer)
    assert caught.value.raw == answer


@pytest.mark.parametrize("text", ["word and " * 4000, "3.5 " * 9000, "." * 36000 + "x"])
def test_long_answers_without_an_end_take_no_time(text):
    """Servers send as much; a search that tries every place anew takes the test's whole time."""
    assert tidy_prompt(text) == text.strip()


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"language": "french"}, "language is 'french'"), ({"long_words": -1}, "long_words is -1")],
)
def test_settings_that_are_none(settings, error):
    with pytest.raises(ValueError, match=error):
        Enhancer(**settings)


def test_instructions_can_be_edited_but_not_cut(tmp_path):
    file = tmp_path / FILE.name
    text = FILE.read_text(encoding="utf-8")
    file.write_text(text.replace("80 to 160 words", "20 words"), encoding="utf-8")
    assert "20 words" in read_parts(file)["task"]
    file.write_text(text.replace("## picture", "## image"), encoding="utf-8")
    with pytest.raises(ValueError, match="no part 'picture'"):
        read_parts(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="cannot be read"):
        read_parts(file)


def test_the_example_keeps_its_own_rules():
    task = read_parts()["task"]
    example = re.search(r"Example answer: (.*)\Z", task, re.DOTALL)[1]
    assert 80 <= count_words(example) <= 160
    assert tidy_prompt(example) == " ".join(example.split())
    assert set(read_parts()) == set(PARTS)


def test_sampling_is_within_its_own_bounds():
    assert Enhancer().sampling == Sampling(640, top_p=0.9, repetition_penalty=1.05)
