"""A storyboard as text: its marks, and what is refused."""

import pytest

from skyreels_model.plan.storyboard import (
    EXAMPLE,
    TimedPrompt,
    is_storyboard,
    parse_storyboard,
    shot_lengths,
    write_storyboard,
)


def test_a_line_for_each_shot():
    text = "0s: a street at dawn\n6s: rain sets in\n9s cut: inside a café\n"
    assert parse_storyboard(text, 12) == [
        TimedPrompt("a street at dawn", 6, False),
        TimedPrompt("rain sets in", 3, False),
        TimedPrompt("inside a café", 3, True),
    ]


def test_a_mark_may_have_a_cross_fade_and_a_seed():
    text = "0s seed 7: one / 2s ease 12: two / 4s CUT Seed 18446744073709551615 ease 0: three"
    assert parse_storyboard(text, 6) == [
        TimedPrompt("one", 2, False, None, 7),
        TimedPrompt("two", 2, False, 12, None),
        TimedPrompt("three", 2, True, 0, 2**64 - 1),
    ]


def test_a_mark_may_have_the_strength_of_a_lora():
    text = "0s lora 0.5: one\n2s seed 7 lora -1: two\n4s LORA 2 cut: three\n5s lora 0: four"
    shots = parse_storyboard(text, 6)
    assert [shot.lora for shot in shots] == [0.5, -1, 2, 0]
    assert parse_storyboard(write_storyboard(shots), 6) == shots
    assert parse_storyboard("0s: one", 6)[0].lora is None


@pytest.mark.parametrize("words", [" lora" * 1000, " cut" * 1000])
def test_a_message_shows_the_beginning_of_a_long_mark(words):
    with pytest.raises(ValueError, match="text") as raised:
        parse_storyboard(f"0s: one\n4s{words}: two", 6)
    assert len(str(raised.value)) < 400


def test_slashes_between_are_the_same_and_the_messages_example_is_legal():
    lines = "0s: a street at dawn\n6s: rain sets in\n9s cut: inside a café"
    assert parse_storyboard(EXAMPLE.strip("'"), 12) == parse_storyboard(lines, 12)


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("0s: one", ["one"]),
        ("  \n 0 s : one \n\n  2.5S  CUT :two\n", ["one", "two"]),
        ("0s: a clock shows 5s: it is late\n2s: two", ["a clock shows 5s: it is late", "two"]),
        ("0s: open 24/7 and 1/2s: full\n2s: two", ["open 24/7 and 1/2s: full", "two"]),
        ("0s: a long prompt\nover two   lines\n2s: two", ["a long prompt over two lines", "two"]),
        ("0s: always 24/7: here / at 16:9\n2s: two", ["always 24/7: here / at 16:9", "two"]),
        ("0s: a clock\n10:30 it shows\n2s: two", ["a clock 10:30 it shows", "two"]),
        ("0s: left / right\n2s: two", ["left / right", "two"]),
        ("0s: café: inside / 2s: \u4e8c", ["café: inside", "\u4e8c"]),
        ("0s: one\r\n2s: two\r\n", ["one", "two"]),
        ("0s: one / 2s: two\n3s: three", ["one", "two", "three"]),
    ],
)
def test_marks_are_at_the_beginning_of_a_line_or_behind_a_slash(text, prompts):
    assert [shot.prompt for shot in parse_storyboard(text, 10)] == prompts


@pytest.mark.parametrize("lead", ["/ ", " / ", "\n/", "\n \n"])
def test_a_slash_may_lead_the_first_mark_too(lead):
    text = f"{lead}0s: one\n/ 4s: two"
    assert is_storyboard(text)
    assert parse_storyboard(text, 6) == parse_storyboard("0s: one\n4s: two", 6)


def test_times_may_be_fractions_and_the_last_shot_ends_with_the_film():
    shots = parse_storyboard("0s: one / 0.5s: two / 2.25s cut: three", 2.5)
    assert [shot.seconds for shot in shots] == [0.5, 1.75, 0.25]
    assert [shot.cut for shot in shots] == [False, False, True]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("text begins with ''", "0s: a street")),
        ("a street at dawn", ("'a street at dawn'", "marked with the second", "0s: a street")),
        ("a street\n0s: at dawn", ("text begins with 'a street", "0s: a street")),
        ("0: a street", ("text begins with '0: a street'", "0s: a street")),
        ("-1s: a street", ("text begins with '-1s", "0s: a street")),
        ("2s: a street", ("text's first second is 2", "nearest: 0")),
        ("0s: one\n4s seed -1: two", ("text has '4s seed -1:'", "such as")),
        ("0s: one\n4s ease: two", ("text has '4s ease:'", "such as")),
        ("0s: one\n4s ease 1001: two", ("ease of shot 2", "nearest: 1000")),
        ("0s: one\n4s lora -21: two", ("lora of shot 2 is -21", "nearest: -20")),
        ("0s: one\n4s lora " + "9" * 400 + ": two", ("lora of shot 2 is inf", "nearest: 20")),
        ("0s: one\n4s lora .5: two", ("text has '4s lora .5:'", "such as")),
        ("0s: one\n4s lora 0,5: two", ("text has '4s lora 0,5:'", "such as")),
        ("0s: one\n4s lora +1: two", ("text has '4s lora +1:'", "such as")),
        ("0s: one\n4s lora 50%: two", ("text has '4s lora 50%:'", "such as")),
        ("0s: one / 4s cut lora=1: two", ("text has '/ 4s cut lora=1:'", "such as")),
        ("0s: one\n4s lora 1 lora 2: two", ("each word once",)),
        ("0s: one\n4s cut cut: two", ("shot 2 says 'cut cut'", "each word once")),
        (
            "0s: one\n4s: two\n3s: three",
            ("text has shot 2 at 4s", "shot 3 is at 3s", "must begin before"),
        ),
        ("0s: one\n4s: two\n4s: three", ("text has shot 2 at 4s", "shot 3 is at 4s")),
        ("0s: one\n0s: two", ("text has shot 1 at 0s", "shot 2 is at 0s")),
        ("0s: one\n10s: two", ("text has shot 2 at 10s", "the film's end is at 10s")),
        ("0s: one\n12.5s: two", ("text has shot 2 at 12.5s", "the film's end is at 10s")),
        ("0s: one\n4s:  \n6s: three", ("text has no prompt for shot 2, at 4s",)),
        ("0s:", ("text has no prompt for shot 1, at 0s",)),
        ("0s: one / 6,5s: two", ("text has '/ 6,5s:'", "point", "0s: a street")),
        ("0s: one / 6: two", ("text has '/ 6:'", "an s")),
        ("0s: one\n6 cut: two", ("text has '6 cut:'", "an s")),
        ("0s: one\n6 sec: two", ("text has '6 sec:'",)),
        ("0s: one / -1s: two", ("text has '/ -1s:'",)),
        ("0s: one / .5s: two", ("text has '/ .5s:'",)),
        ("0s: one/6s: two", ("text has '/6s:'", "space before it")),
    ],
)
def test_what_is_refused(text, parts):
    with pytest.raises(ValueError) as error:
        parse_storyboard(text, 10)
    assert all(part in str(error.value) for part in parts), error.value


def test_shots_begin_at_the_frame_nearest_to_their_second():
    assert shot_lengths([0.3, 0.3, 0.4], 8) == [2, 3, 3]


@pytest.mark.parametrize(
    ("seconds", "fps", "parts"),
    [
        ([0.99, 0.01], 24, ("seconds of shot 2 is 0.01", "24 fps", "nearest: 0.0417")),
        ([0.1, 0.1, 0.1], 8, ("seconds of shot 3 is 0.1", "8 fps", "nearest: 0.125")),
    ],
)
def test_a_shot_without_a_frame_is_refused(seconds, fps, parts):
    with pytest.raises(ValueError) as error:
        shot_lengths(seconds, fps)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    "filling",
    ["\n" * 400_000, " " * 400_000, "\n \t" * 130_000, " /\n" * 130_000, "\n" + "9" * 300_000],
    ids=["lines", "spaces", "both", "slashes", "digits"],
)
def test_a_long_text_is_read_in_one_pass(filling):
    """In steps of the square of its length it would take hours."""
    (shot,) = parse_storyboard(f"0s: a{filling}b", 10)
    assert shot.prompt.startswith("a") and shot.prompt.endswith("b")


def test_a_text_beyond_the_limit_is_refused():
    with pytest.raises(ValueError, match="length of text is 1000001.*nearest: 1000000"):
        parse_storyboard("0s: " + "a" * 999_997, 10)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 86401.0])
def test_a_film_of_no_length_is_refused(seconds):
    with pytest.raises(ValueError, match="seconds is .*; it must be .*0 to 86400"):
        parse_storyboard("0s: one", seconds)
