"""The benchmark for cards, rehearsed on a processor as on a machine that has nothing of ours.

Such a machine is a virtual environment that holds torch, transformers and what these need; what
else the benchmark imports is in the folder that it packs.
"""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
THERE = "torch numpy einops safetensors transformers scipy pillow psutil pyyaml tqdm sentencepiece"
PACKED = ("comfy_kitchen", "comfy_aimdo", "torchsde", "ftfy")
# What no processor has: their rows say so.
CARDS_ONLY = {
    f"PyTorch, {name} ({size})"
    for name in ("cuDNN", "memory-efficient")
    for size in ("1.3B", "14B")
}
# The reference is not ours to have here.
OF_OTHERS = {"reference", "decode, reference, bf16 autocast", "encode, reference, bf16 autocast"}

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links to packages need rights on Windows")


def needed(names):
    """These packages and all that they need, by their names in lower case with dashes."""
    found, left = {}, list(names)
    while left:
        name = re.sub(r"[-_.]+", "-", left.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on other systems
        wanted = [line for line in found[name].requires or [] if "extra ==" not in line]
        left += [re.match(r"[\w.-]+", line).group() for line in wanted]
    return list(found.values())


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The Python of an environment that has what a bare machine with a card has."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = pathlib.Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    for package in needed(THERE.split()):
        tops = {file.parts[0] for file in package.files or [] if file.parts[0] != ".."}
        for top in sorted(tops):
            place, link = pathlib.Path(package.locate_file(top)), site / top
            if place.exists() and top != "__pycache__" and not link.exists():
                link.symlink_to(place)
    return folder / "bin" / "python"


def call(python, *command, **options):
    """Run it far from the repository, without what points there."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SKYREELS"))}
    options = {"capture_output": True, "text": True, "env": kept, **options}
    return subprocess.run([str(python), *map(str, command)], **options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The folder of a rehearsal, packed without a network."""
    if not os.environ.get("COMFYUI_PATH"):
        pytest.skip("COMFYUI_PATH does not name a ComfyUI tree; `python3 dev.py test` fetches one")
    folder = tmp_path_factory.mktemp("packed") / "for_gpu"
    script = ROOT / "benchmarks" / "pack_for_gpu.py"
    done = call(sys.executable, script, "--rehearsal", "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def first(row):
    """What stands in a row's first column."""
    return list(row.values())[2]


def nothing_fails_but_what_only_a_card_or_the_reference_has(rows):
    said = r"\w*Error: |left out: "
    failed = {first(row) for row in rows if re.match(said, row.get("note") or "")}
    failed |= {first(row) for row in rows if first(row) in ("failed", "stopped", "left out")}
    assert failed == CARDS_ONLY | OF_OTHERS


def every_implementation_is_measured(rows, table):
    films = {"ours, plain, 1 of 3 frames left out", "ours, plain, 1 of 3 frames kept"}
    films |= {"ours, plain, blocks left out by the published TeaCache", "ours, pytorch_order"}
    films |= {"ours, plain, by kernels"}
    kernels = {"sum, norm and modulation, kernel", "norm and rotation, kernel"}
    kernels |= {"product with its GELU", "a block, PyTorch's", "a block, kernels"}
    ways = {
        "card": {"copy, read and written", "our kernels, their test"},
        "attention": {"PyTorch, its own order", "PyTorch, flash", "ComfyUI, pytorch"},
        "precision": {"ours", "ours, in ComfyUI", "ComfyUI's own"},
        "1.3B": {"ours, plain", "ours, auto", "ours, auto, batch 2", "ComfyUI's own"} | films,
        "14B": {"ours, plain", "ours, auto", "ours, auto, batch 2", "ComfyUI's own"} | films,
        "profile": {"all products", "all kernels"},
        "elementwise": {"rotation, comfy_kitchen", "adaptive norm, comfy_kitchen"} | kernels,
        "vae": {"decode, ours", "encode, ours", "decode, ComfyUI's own", "encode, ComfyUI's own"},
        "compile": {"ours", "ours, compiled", "ours, in ComfyUI, compiled"},
    }
    for section, wanted in ways.items():
        measured = {first(row) for row in rows if row["section"] == section and len(row) > 4}
        assert wanted <= measured, section
        assert all(f"| {way} |" in table for way in wanted), section


def the_three_are_one_network(rows):
    """Equal weights give equal numbers, or a comparison of their times would be of two models."""
    for row in rows:
        if row["section"] in ("vae", "compile") and "difference" in row:
            assert row["difference"] < 1e-4, row
        if row["section"] in ("precision", "attention", "elementwise") and "error" in row:
            assert row["error"] < 1e-2, row


def films_are_made(rows):
    films = {first(row): row for row in rows if row["section"] == "films"}
    assert films["toy film, processor"]["seconds"] > 0
    assert films["1.3B, 3 GiB free"]["note"] == "equal"


def test_the_machine_has_nothing_of_ours(python):
    for name in PACKED:
        done = call(python, "-c", f"import {name}")
        assert "ModuleNotFoundError" in done.stderr, name


def test_all_of_it_runs(python, packed, tmp_path):
    """One run, looked at from four sides: it takes most of a minute."""
    script = ROOT / "benchmarks" / "gpu.py"
    done = call(python, script, "--rehearse", "--packed", packed, "--out", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    nothing_fails_but_what_only_a_card_or_the_reference_has(rows)
    every_implementation_is_measured(rows, (tmp_path / "table.md").read_text())
    the_three_are_one_network(rows)
    films_are_made(rows)


def test_a_section_that_is_not_there(packed):
    script = ROOT / "benchmarks" / "gpu.py"
    done = call(sys.executable, script, "--only", "speed", "--packed", packed)
    assert done.returncode == 2
    assert "--only is speed; it must be one of: card, films, attention" in done.stderr


def test_a_folder_that_was_not_packed(tmp_path):
    done = call(sys.executable, ROOT / "benchmarks" / "gpu.py", "--packed", tmp_path)
    assert done.returncode == 2
    assert f"--packed is {tmp_path}; it must be a folder that" in done.stderr
