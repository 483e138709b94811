"""One command for all comparisons: what it runs, and what it leaves out."""

import sys
from pathlib import Path

import pytest

from benchmarks import run

TREES = {"reference": "REF", "comfyui": "HOST"}


@pytest.mark.parametrize("comparison", run.COMPARISONS, ids=lambda one: one.name)
def test_each_is_a_script_that_is_there(comparison):
    script, *rest = comparison.arguments(TREES)
    assert (run.FOLDER / script).is_file()
    assert not any("{" in part for part in rest)


def test_trees_go_where_they_are_taken():
    by_name = {one.name: one for one in run.COMPARISONS}
    assert len(by_name) == len(run.COMPARISONS)
    forward = by_name["forward"]
    assert forward.arguments({}) == ["dit_forward.py"]
    assert forward.arguments(TREES)[1:] == ["--reference", "REF", "--comfyui", "HOST"]
    assert by_name["tiles"].arguments(TREES) == ["vae_tiles.py", "HOST"]


def test_what_needs_a_tree_that_is_not_given_is_left_out_and_said(capsys, monkeypatch):
    monkeypatch.setattr(run.subprocess, "run", lambda *a, **k: pytest.fail("it was run"))
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "tiles", "import"])
    assert run.main() == 0
    assert capsys.readouterr().out.count("left out: it needs --comfyui") == 2


def test_one_that_fails_is_told_and_the_others_run(capsys, monkeypatch):
    codes, commands = iter([3, 0]), []

    def fake(command, **_):
        commands.append(command[1:])
        return run.subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(run.subprocess, "run", fake)
    monkeypatch.setattr(sys, "argv", ["run.py", "--only", "savings", "idle"])
    assert run.main() == 1
    assert "FAILED with 3" in capsys.readouterr().out
    assert [Path(command[0]).name for command in commands] == ["savings.py", "idle_frames.py"]
