"""Prompts and results at the shell: what `dev.py run` takes, refuses and shows."""

import io
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest

from devtools import (
    outcome,
    progress,
    prompt,
)
from devtools.cache import SetupError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def graph():
    return {
        "5": {
            "class_type": "Encode",
            "inputs": {"prompt": "x", "a.b": 1},
            "_meta": {"title": "v1.0"},
        },
        "6": {"class_type": "Sampler", "inputs": {"steps": 4, "encoded": ["5", 0]}},
        "7": {"class_type": "Save", "inputs": {}},
        "8": {"class_type": "Save", "inputs": {}},
    }


class TestPrompt:
    @pytest.mark.parametrize(
        ("assignment", "node_id", "name", "value"),
        [
            ("5.prompt=a red ball = fun", "5", "prompt", "a red ball = fun"),
            ("Encode.prompt=a red ball", "5", "prompt", "a red ball"),
            ("v1.0.prompt=by title", "5", "prompt", "by title"),
            ("5.a.b=2", "5", "a.b", 2),
            ("6.steps=7", "6", "steps", 7),
            ('6.encoded=["7", 1]', "6", "encoded", ["7", 1]),
            ('5.prompt="7"', "5", "prompt", "7"),
        ],
    )
    def test_set(self, graph, assignment, node_id, name, value):
        prompt.assign(graph, [assignment])
        assert graph[node_id]["inputs"][name] == value

    @pytest.mark.parametrize(
        ("assignment", "said"),
        [
            ("9.prompt=x", "6 Sampler"),
            ("Save.x=3", "['7', '8']"),
            ("steps=3", "node.input=value"),
            ("6.steps", "node.input=value"),
        ],
    )
    def test_set_refuses_and_lists_the_legal(self, graph, assignment, said):
        with pytest.raises(prompt.BadPrompt, match=re.escape(said)):
            prompt.assign(graph, [assignment])

    def test_an_input_beyond_the_prompts_is_one_that_its_node_declares(self, graph):
        declared = {"required": {"steps": ()}, "optional": {"seconds": (), "images": ()}}
        asked = []

        def inputs_of(kind):
            asked.append(kind)
            return prompt.declared_inputs(declared | {"hidden": {"prompt": ()}})

        assignments = ["Sampler.seconds=2", "6.images.image0=x", "6.steps=5"]
        added = prompt.assign(graph, assignments)
        prompt.check_added(graph, added, inputs_of)
        assert graph["6"]["inputs"]["seconds"] == 2 and asked == ["Sampler"] * 2
        for wrong in ("6.stepz=3", "6.prompt=x"):
            added = prompt.assign(graph, [wrong])
            said = rf"--set {wrong}: node 6 \(Sampler\) has no input .* steps, seconds, images"
            with pytest.raises(prompt.BadPrompt, match=said):
                prompt.check_added(graph, added, inputs_of)
        # A class that the host does not have is the host's to refuse.
        prompt.check_added(graph, added, lambda kind: None)

    def test_ui_format_is_refused_and_its_api_twin_named(self, tmp_path):
        file = tmp_path / "film.json"
        file.write_text('{"nodes": [], "links": []}')
        with pytest.raises(prompt.BadPrompt, match="Export"):
            prompt.load(file)
        (tmp_path / "api").mkdir()
        (tmp_path / "api" / "film.json").write_text("{}")
        with pytest.raises(prompt.BadPrompt, match=re.escape(str(tmp_path / "api" / "film.json"))):
            prompt.load(file)

    @pytest.mark.parametrize("content", ["{", "[]", "{}", '{"1": {"class_type": "A"}}'])
    def test_other_files_are_refused(self, tmp_path, content):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(prompt.BadPrompt):
            prompt.load(tmp_path / "x.json")

    def test_node_errors_read_as_node_class_input_message(self):
        node_errors = {
            "6": {
                "class_type": "Sampler",
                "errors": [
                    {
                        "type": "value_not_in_list",
                        "message": "Value not in list",
                        "details": "solver: 'x' not in ['euler']",
                        "extra_info": {"input_name": "solver"},
                    }
                ],
            }
        }
        error = {"type": "prompt_outputs_failed_validation", "message": "failed", "details": ""}
        assert str(prompt.InvalidPrompt(error, node_errors)).splitlines() == [
            "invalid prompt: failed",
            "  node 6 (Sampler), input solver: Value not in list (solver: 'x' not in ['euler'])",
        ]


class TestOutcome:
    def test_files_of_all_nodes(self):
        outputs = {
            "1": {"images": [{"filename": "a.mp4", "subfolder": "s", "type": "output"}]},
            "2": {"text": ["hello"], "animated": (True,)},
        }
        (file,) = outcome.result([], outputs).files
        assert str(file.relative) == "s/a.mp4" and file.kind == "output"

    @pytest.mark.parametrize(
        ("name", "subfolder", "systems"),
        [
            ("x", "../up", (PurePosixPath, PureWindowsPath)),
            ("/etc/x", "", (PurePosixPath, PureWindowsPath)),
            ("x", "..\\up", (PurePosixPath, PureWindowsPath)),
            ("x", "/up", (PurePosixPath, PureWindowsPath)),
            ("..\\x", "", (PureWindowsPath,)),
            ("\\x", "", (PureWindowsPath,)),
            ("x", "C:\\up", (PureWindowsPath,)),
            ("C:x", "", (PureWindowsPath,)),
        ],
    )
    def test_a_file_outside_of_its_folder_is_refused(self, name, subfolder, systems):
        for system in systems:
            with pytest.raises(SetupError, match="outside"):
                outcome.OutputFile(name, subfolder, "output").path_inside(system)

    @pytest.mark.parametrize(
        ("name", "subfolder", "path"),
        [
            ("take 1: dawn_00001_.mp4", "shots", "shots/take 1: dawn_00001_.mp4"),
            ("x.mp4", "day 2\\shots", "day 2/shots/x.mp4"),
            ("..x.mp4", "..shots", "..shots/..x.mp4"),
        ],
    )
    def test_any_other_name_is_taken(self, name, subfolder, path):
        file = outcome.OutputFile(name, subfolder, "output")
        for system in (PurePosixPath, PureWindowsPath):
            assert str(file.path_inside(system)) == path

    def test_failure(self):
        data = {
            "node_id": "6",
            "node_type": "Sampler",
            "exception_type": "ValueError",
            "exception_message": "no\n",
        }
        failed = outcome.result([("execution_start", {}), ("execution_error", data)], {})
        assert not failed.success and not failed.interrupted
        assert failed.describe() == "node 6 (Sampler) failed: ValueError: no"

    def test_progress_is_sparse_off_a_terminal(self, graph):
        stream = io.StringIO()
        report = progress.Reporter(graph, stream)
        report("executing", {"node": "6"})
        for value in range(1, 101):
            state = {"6": {"value": value, "max": 100, "state": "running"}}
            report("progress_state", {"nodes": state})
        report("executing", {"node": None})
        lines = stream.getvalue().splitlines()
        assert len(lines) == 2
        assert lines[0].endswith("6 Sampler") and "100/100" in lines[1]
