"""Translations: what the page shows of our nodes is there in each language, and says the same."""

import json
import re
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "locales"
LANGUAGES = sorted(folder.name for folder in FOLDER.iterdir() if folder.is_dir())
# A script that each language needs, and one that would be another language's.
KANA, HAN = "[\u3040-\u30ff]", "[\u4e00-\u9fff]"
SCRIPTS = {"ja": (KANA, None), "zh": (HAN, KANA)}
# The folders of nodes that the page has a name for, beside the pack's own.
KNOWN_FOLDERS = {"SkyReels-V2", "loaders", "conditioning", "sampling", "latent"}
# Options that are names in every language, and inputs whose options are files.
NAMES = {
    "bf16", "fp16", "fp32", "fp8", "fp8_e4m3fn", "fp8_e5m2", "sage", "sage3", "flash", "xformers",
    "unipc", "euler", "dpmpp_2m", "h264", "hevc", "av1", "vp9",
}  # fmt: skip
FILES = {
    "model_name", "text_encoder_name", "vae_name", "image_encoder_name", "lora_name",
    "language_model_name", "calibration",
}  # fmt: skip
# The page compiles these texts, and only shows tooltips.
COMPILED, SYNTAX = ("display_name", "description", "name"), set("{}@|")

pytestmark = pytest.mark.server


def fetch(server, path):
    with urllib.request.urlopen(server.url + path) as response:
        return json.loads(response.read())


def declared_inputs(info):
    """Those that the page shows: others are hidden."""
    return info["input"].get("required", {}) | info["input"].get("optional", {})


def declared(info):
    """The texts of a node that the page looks up, in the form of nodeDefs.json."""
    outputs = {}
    for index, kind in enumerate(info["output"]):
        name, tooltip = info["output_name"][index], info["output_tooltips"][index]
        # Where an output is called as its type, the page has a translation of its own.
        outputs[str(index)] = ({} if name == kind else {"name": name}) | {"tooltip": tooltip}
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": {
            name: {"name": name, "tooltip": spec[1]["tooltip"]}
            for name, spec in declared_inputs(info).items()
        },
        "outputs": outputs,
    }


def flatten(texts, before=()):
    """{(node, "inputs", name, "tooltip"): text}, in order."""
    if isinstance(texts, str):
        return {before: texts}
    flat = {}
    for key, value in texts.items():
        flat |= flatten(value, (*before, key))
    return flat


def read(name):
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def nodes(server):
    """What the running host says of our nodes."""
    known = fetch(server, "/object_info")
    return {name: info for name, info in known.items() if name.startswith("SkyReelsV2")}


@pytest.fixture(scope="module")
def source():
    """The English that was translated."""
    return flatten(read("source.json"))


@pytest.fixture(scope="module", params=LANGUAGES)
def language(request):
    return request.param


@pytest.fixture(scope="module")
def translated(language):
    return flatten(read(f"{language}/nodeDefs.json"))


def missing(source, translated, find):
    """{path: what `find` finds in the English and not, or less often, in the translation}."""
    lost = {}
    for path, text in source.items():
        less = Counter(find(path, text)) - Counter(find(path, translated[path]))
        if less:
            lost[path] = sorted(less)
    return lost


def test_what_was_translated_is_what_the_nodes_say_today(nodes):
    """After a change: first the translations, then the new English into locales/source.json."""
    today, then = {name: declared(info) for name, info in nodes.items()}, read("source.json")
    changed = {name: texts for name, texts in today.items() if texts != then.get(name)}
    assert not changed, json.dumps(changed, indent=2, ensure_ascii=False)
    assert set(then) == set(today)


def test_every_text_is_translated_and_no_other(source, translated):
    assert list(translated) == list(source)


def test_the_host_serves_it(server, language):
    parts = {name: read(f"{language}/{name}.json") for name in ("nodeDefs", "settings")}
    files = read(f"{language}/main.json") | parts
    assert fetch(server, "/i18n")[language] == files


def test_every_setting_is_translated(language):
    """Under its name with other points, where the page looks it up."""
    script = (FOLDER.parent / "js" / "settings.js").read_text(encoding="utf-8")
    names = re.findall(r"\btext\(\s*\"(\w+)\"", script)
    settings = read(f"{language}/settings.json")
    assert len(names) == 3 and set(settings) == {f"SkyReelsV2_Words_{name}" for name in names}
    assert all(set(texts) == {"name", "tooltip"} for texts in settings.values())
    assert all(re.search(SCRIPTS[language][0], one["tooltip"]) for one in settings.values())


def test_groups_of_settings_have_names(language):
    script = (FOLDER.parent / "js" / "settings.js").read_text(encoding="utf-8")
    (group,) = re.findall(r'category: \["SkyReels-V2", "([^"]+)"', script)
    named = read(f"{language}/main.json")["settingsCategories"]
    assert set(named) == {group} and re.search(HAN, named[group])


def test_folders_of_nodes_have_names(nodes, language):
    folders = {folder for info in nodes.values() for folder in info["category"].split("/")}
    named = read(f"{language}/main.json")["nodeCategories"]
    assert set(named) == folders - KNOWN_FOLDERS
    assert all(re.search(HAN, name) for name in named.values())


def test_sentences_are_of_the_language(translated, language):
    of_it, of_another = SCRIPTS[language]
    for path, text in translated.items():
        assert text.strip() == text != ""
        if path[-1] in ("description", "tooltip"):
            assert re.search(of_it, text), path
        assert not of_another or not re.search(of_another, text), path


def test_it_has_the_numbers_of_the_english(source, translated):
    assert not missing(source, translated, lambda path, text: re.findall(r"\d+(?:\.\d+)?", text))


def test_it_names_options_as_the_widget_shows_them(nodes, source, translated):
    """Options are saved in workflows: the page shows them after their labels (js/lib/words.js)."""

    def named(path, text):
        if path[1] != "inputs" or path[-1] != "tooltip":
            return []
        kind, options = declared_inputs(nodes[path[0]])[path[2]]
        values = options.get("options", []) if kind == "COMBO" else []
        return {v for v in values if re.search(rf"(?<![\w-]){re.escape(v)}(?![\w-])", text, re.A)}

    assert any(named(path, text) for path, text in source.items())
    assert not missing(source, translated, named)


def test_options_have_labels(nodes, language):
    words = json.loads((FOLDER.parent / "js" / "words" / f"{language}.json").read_text("utf-8"))
    labels = words["options"]
    for name, info in nodes.items():
        for input_name, (kind, spec) in declared_inputs(info).items():
            found = labels.get(name, {}).get(input_name, {})
            options = spec.get("options", []) if kind == "COMBO" else []
            assert set(found) <= set(options), (name, input_name)
            unlabelled = set(options) - set(found) - NAMES
            # The host may have more kinds of attention, by names of their own.
            if input_name not in FILES | {"attention"}:
                assert not unlabelled, (name, input_name)
    assert {(name, one) for name in labels for one in labels[name]} <= {
        (name, one) for name, info in nodes.items() for one in declared_inputs(info)
    }


def test_it_names_nodes_as_the_page_does(source, translated):
    names = {path[0]: text for path, text in source.items() if path[1:] == ("display_name",)}
    for path, text in source.items():
        for node, name in names.items():
            if name in text:
                assert translated[node, "display_name"] in translated[path], (path, name)


def test_a_tooltip_ends_with_the_name_that_errors_and_help_pages_use(translated):
    for path, text in translated.items():
        if path[1] == "inputs" and path[-1] == "tooltip":
            name = path[2]
            shown = translated[(*path[:-1], "name")].lower()
            assert shown == name or text.endswith(f"\uff08{name}\uff09"), path


def test_the_page_can_compile_it(translated):
    for path, text in translated.items():
        assert path[-1] not in COMPILED or not SYNTAX & set(text), path
