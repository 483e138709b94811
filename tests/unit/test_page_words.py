"""The page's words in each language: all that is shown is there, and says the same."""

import json
import re
from pathlib import Path

import pytest
from sentences import HOLE, find_sentences, read_sentences, tell

from skyreels_model.budget import describe_kept, describe_memory, describe_model, describe_ram
from skyreels_model.plan.choose import choose_plan
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.presets import CAUSAL_PRESET
from skyreels_model.plan.summary import describe_plan, describe_shortly

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = sorted(file.stem for file in (ROOT / "js" / "words").glob("*.json"))
# Only programs that use the package without ComfyUI give these what they refuse, or only the log
# says it: nobody reads it on the page.
OF_PROGRAMS = {
    "model/network.py", "model/names.py", "text_encoder/network.py", "text_encoder/config.py",
    "image_encoder/network.py", "vae/network.py", "vae/names.py", "vae/tiles.py", "framing.py",
    "files/gguf_blocks.py", "words/engine.py", "rollout/loop.py", "video/boxes.py",
    "video/fragments.py",
}  # fmt: skip
# Of sentences with two alternatives those that no run says.
NEVER = (
    "model's variant is causal, and .*, or set finished_frames to computed",
    "finished_frames is .*, and [^,]*",
    f"pytorch or auto, since {HOLE} .* {HOLE} numbers and {HOLE}",
    f"pytorch or auto, since {HOLE} needs a card .* or higher",
    "pytorch or auto, since .* (uses none here|no package .*) and this one has .*",
    ".* and this model in this model's have .*",
    f"{HOLE}, {HOLE} to {HOLE}",  # a whole number, or of another form
    "None .*",
    f"{HOLE} is None; beside .*",
)
# Words that no sentence in another language has, beside names.
ENGLISH = r"\b(is|it|its|must|be|the|of|and|or|in|has|have|with|a|an|on|which|are|by|than)\b"
# Examples, and the names of nodes.
QUOTED = "'[^']*'|`[^`]*`|\u201c[^\u201d]*\u201d|\u300c[^\u300d]*\u300d"
# What is a name in every language, where a plan is told.
NAMES = {
    "ar_step", "cfg", "fps", "fps_float", "shift", "sigmas", "solver", "lcm", "idle_frames",
    "left_out", "finished_frames", "kept", "kept_in_ram", "block_size", "window", "overlap",
    "steps", "prefix_noise", "pixels", "Preset", "causal", "Self", "Forcing", "text", "image",
    "asynchronous", "VAE", "GPU", "RAM", "Latent", "NVIDIA", "GeForce", "RTX", "Tesla",
}  # fmt: skip
JS_TEXT = r"\bt\(\s*\"((?:[^\"\\]|\\.)*)\""


@pytest.fixture(scope="module", params=LANGUAGES)
def words(request):
    return json.loads((ROOT / "js" / "words" / f"{request.param}.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def sentences(words):
    return read_sentences(words["messages"])


def scripts():
    """The page's scripts without comments, by name."""
    files = sorted(file for file in (ROOT / "js").rglob("*.js") if file.name != "styles.js")
    return {
        file.relative_to(ROOT).as_posix(): re.sub(
            r"^\s*(//|/?\*).*$", "", file.read_text("utf-8"), flags=re.M
        )
        for file in files
    }


def flatten(table, before=()):
    if isinstance(table, str):
        return {before}
    return {path for key, value in table.items() for path in flatten(value, (*before, key))}


def is_translated(sentences, line):
    told = tell(sentences, line)
    return told != line and not re.search(ENGLISH, re.sub(QUOTED, "", told))


def test_there_are_chinese_and_japanese_beside_english():
    assert LANGUAGES == ["ja", "zh"]


def test_all_languages_have_the_same_texts():
    first, *others = (
        flatten(json.loads((ROOT / "js" / "words" / f"{name}.json").read_text("utf-8")))
        for name in LANGUAGES
    )
    assert all(first == other for other in others)


def test_every_text_of_a_script_is_in_the_table_and_no_other(words):
    texts = {text for script in scripts().values() for text in re.findall(JS_TEXT, script)}
    assert len(texts) > 60 and texts == set(words["page"])


def test_no_script_shows_english_that_is_not_looked_up():
    own = r"console\.warn\((?:[^()]|\([^()]*\))*\)"  # the log
    for name, script in scripts().items():
        if name == "js/settings.js":  # translated in locales/
            continue
        rest = re.sub(own, "", re.sub(JS_TEXT, "", script))
        quoted = re.findall(r"\"(?:[^\"\\\n]|\\.)*\"|'(?:[^'\\\n]|\\.)*'|`[^`]*`", rest)
        shown = [one for one in quoted if re.search(r"[A-Za-z]{2,} [a-z]{2,}", one)]
        assert [one for one in shown if not re.search("srv2|px solid", one)] == [], name


def test_values_have_their_places(words):
    for text, translated in (words["page"] | words["messages"]).items():
        holes = set(re.findall(r"\{#?(\w+)\}", text))
        numbered = {hole.lstrip("tl") for hole in re.findall(r"\{([tl]?\d+)\}", translated)}
        named = set(re.findall(r"\{([a-z]+)\}", translated))
        assert holes == numbered | named, text


def test_nothing_of_the_page_is_left_in_english(words):
    for text, translated in words["page"].items():
        latin = re.findall(r"[A-Za-z]{2,}", re.sub(r"\{\w+\}", "", translated))
        assert set(latin) <= {"fps", "sigmas", "LoRA"}, text


@pytest.mark.parametrize("room", ["nodes", "skyreels_model"])
def test_every_error_and_warning_is_translated(sentences, room):
    said = set()
    for file in sorted((ROOT / room).rglob("*.py")):
        if file.relative_to(ROOT / room).as_posix() in OF_PROGRAMS:
            continue
        said |= {
            line
            for line in find_sentences(file.read_text("utf-8"))
            if re.search(r"[A-Za-z]{2,} ", line)
            and not any(re.fullmatch(never, line) for never in NEVER)
        }
    assert len(said) > 120
    assert sorted(line for line in said if not is_translated(sentences, line)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frames": 17},
        {"seconds": 4000.0, "sliding": True, "ar_step": 30},
        {"preset": "14B 720P, image, asynchronous", "sliding": True, "fps_float": 23.976},
        {"preset": CAUSAL_PRESET, "frames": 1000, "finished_frames": "kept_in_ram"},
        {"ar_step": 5, "block_size": 5, "idle_frames": "left_out", "finished_frames": "kept"},
        {"idle_frames": "left_out", "finished_frames": "kept"},
        {"sliding": True, "ar_step": 30, "idle_frames": "left_out", "finished_frames": "kept"},
        {"sigmas": (1.0, 0.5, 0.0), "frames": 737},
    ],
)
def test_the_plan_is_told_in_each_language(sentences, changes):
    numbers = {"width": 960, "height": 544, "fps": 24}
    choice = choose_plan(**{"frames": 257, **numbers, **changes})
    check_plan(sentences, choice.plan, choice.said)


def test_what_is_given_is_told_in_each_language(sentences):
    plan = FilmPlan(num_frames=257, start=1, pictures=(20,), end=True)
    check_plan(sentences, plan)
    check_plan(sentences, FilmPlan(num_frames=257, following=3))


def check_plan(sentences, plan, said=()):
    size = (plan.window_at(0).length, plan.width, plan.height)
    cards = [None, ("NVIDIA GeForce RTX 4090", 24 * 10**9), ("Tesla T4", 2 * 10**9)]
    lines = [describe_shortly(plan), describe_plan(plan), *said]
    lines += [describe_memory(*size, card) for card in cards]
    lines += [describe_model("14B-540P.safetensors fp8", *size, card) for card in cards]
    lines += [describe_ram(257, 65, 960, 544, ram) for ram in (1, 10**12)]
    lines += [describe_kept(7, 960, 544, 2, in_ram) for in_ram in (True, False)]
    told = [tell(sentences, line) for line in "\n".join(lines).splitlines()]
    words = {word for line in told for word in re.findall(r"[A-Za-z_]{3,}", line)}
    assert words <= NAMES, told


def test_values_stay_as_they_are(sentences, words):
    line = "frames is 0; it must be a whole number, 1 to 9; nearest: 1"
    told = tell(sentences, line)
    assert told.startswith("frames ") and told.endswith("1") and "9" in told
    assert tell(sentences, "no sentence of ours: 5") == "no sentence of ours: 5"
    unknown = "frames is 'of the'; it must be of a newer rule"
    assert "'of the'" in tell(sentences, unknown) and "of a newer rule" in tell(sentences, unknown)
