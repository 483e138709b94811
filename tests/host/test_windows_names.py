"""A host on Windows lists `folder\\file`; workflows from anywhere say `folder/file`, or the other.

Simulated here by giving the host's lists the separators that it would have there.
"""

import json
import pathlib

import graphs
import pytest

from devtools import inprocess

WORKFLOWS = sorted((pathlib.Path(__file__).parents[2] / "workflows" / "api").glob("*.json"))


@pytest.fixture
def windows(host, monkeypatch):
    import folder_paths

    lists, full = folder_paths.get_filename_list, folder_paths.get_full_path
    monkeypatch.setattr(
        folder_paths,
        "get_filename_list",
        lambda category: [name.replace("/", "\\") for name in lists(category)],
    )
    monkeypatch.setattr(
        folder_paths,
        "get_full_path",
        lambda category, name: full(category, name.replace("\\", "/")),
    )


def with_backslashes(prompt):
    text = json.dumps(prompt)
    return json.loads(text.replace("toy/", "toy\\\\").replace("32P/", "32P\\\\"))


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)
def test_our_prompts_are_accepted(windows, file):
    prompt = json.loads(file.read_text(encoding="utf-8"))
    assert with_backslashes(prompt) != prompt
    inprocess.validate(prompt)
    inprocess.validate(with_backslashes(prompt))


@pytest.mark.parametrize("spell", [dict, with_backslashes])
def test_the_files_are_found(windows, look, spell):
    prompt = spell({key: graphs.film()[key] for key in "123"})
    reports = look(prompt, model=["1", 1], text=["2", 1], vae=["3", 1])
    assert all("0 missing" in report for report in reports)


def test_all_lists_have_the_same_names_as_elsewhere(windows):
    import nodes

    for name, files in (
        ("SkyReelsV2ModelLoader", graphs.TOY["model"]),
        ("SkyReelsV2TextEncoderLoader", graphs.TOY["text"]),
        ("SkyReelsV2VAELoader", graphs.TOY["vae"]),
        ("SkyReelsV2LoraLoader", None),
    ):
        inputs = nodes.NODE_CLASS_MAPPINGS[name].define_schema().inputs
        options = next(one.options for one in inputs if one.id.endswith("_name"))
        assert not [option for option in options if "\\" in option]
        assert files is None or files in options


@pytest.mark.parametrize("value", ["toy/none.safetensors", "toy\\none.safetensors", ""])
def test_other_names_are_refused_before_anything_runs(look, value):
    prompt = {key: graphs.film()[key] for key in "13"}
    look({"3": prompt["3"]}, vae=["3", 0])  # loads the probe
    prompt["9"] = graphs.node("SkyReelsV2TestProbe", value=["1", 0], name="never")
    prompt["1"]["inputs"]["model_name"] = value
    with pytest.raises(inprocess.InvalidPrompt, match="must be one of ComfyUI's diffusion_models"):
        inprocess.validate(prompt)
