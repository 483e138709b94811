"""The maps agree with the tree: what documents list is there, and no import goes in a circle."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("skyreels_model", "nodes")
TOUR = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def packages():
    """Every package folder of the two rooms."""
    return sorted(init.parent for room in ROOMS for init in (ROOT / room).rglob("__init__.py"))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def test_files_in_the_tour_exist():
    known = {"/" + name_of(file) for file in ROOT.rglob("*.py")}
    told = re.findall(r"[\w/]+\.py\b", TOUR)
    assert len(told) > 20
    assert not [name for name in told if not any(path.endswith("/" + name) for path in known)]


def test_names_in_the_tour_are_in_the_code():
    files = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    told = sorted(set(re.findall(r"`([A-Za-z_]\w+)`", TOUR)))
    assert len(told) > 20
    assert not [name for name in told if not re.search(rf"\b{name}\b", sources)]


def test_names_in_the_tour_are_in_the_files_that_it_names():
    told = re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.py)`", TOUR)
    assert len(told) > 3
    for name, file in told:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8")), (name, file)


@pytest.mark.parametrize("folder", [p for p in packages() if name_of(p) not in ROOMS], ids=name_of)
def test_every_folder_is_in_the_tour(folder):
    assert re.search(rf"[`/]{folder.name}/?[`/]", TOUR)


@pytest.mark.parametrize("folder", packages(), ids=name_of)
def test_every_package_says_what_it_holds(folder):
    source = (folder / "__init__.py").read_text(encoding="utf-8")
    assert (ast.get_docstring(ast.parse(source)) or "").split("\n")[0].endswith(".")


@pytest.mark.parametrize("network", ["model", "text_encoder", "image_encoder", "vae"])
def test_every_network_answers_with_the_same_files(network):
    folder = ROOT / "skyreels_model" / network
    same = {"config.py", "names.py", "network.py", "memory.py"}
    assert same <= {file.name for file in folder.iterdir()}


def module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(file): file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))
}


def runs_at_import(body):
    """The statements of a module that run when it is imported, those for type checkers left out."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from runs_at_import(node.orelse)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            blocks = ("body", "orelse", "finalbody", "handlers")
            yield from runs_at_import([n for block in blocks for n in getattr(node, block, ())])
        elif isinstance(node, ast.ExceptHandler):
            yield from runs_at_import(node.body)


def imports(name):
    """The modules of the two rooms that a module imports when it is imported itself."""
    file = SOURCES[name]
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in runs_at_import(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.ImportFrom) and node.level:
            # `from ...skyreels_model` in nodes leaves the package `nodes` for the pack's root.
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            base = [part for part in base if part]
            yield from ([*base, alias.name] for alias in node.names)


def dependencies(name):
    """What has to be imported before a module: what it imports, and the packages around that."""
    found = set()
    for path in imports(name):
        prefixes = {".".join(path[:n]) for n in range(1, len(path) + 1)}
        found |= {p for p in prefixes & SOURCES.keys() if not f"{name}.".startswith(f"{p}.")}
    return found


def test_no_import_goes_in_a_circle():
    graph = {name: dependencies(name) for name in SOURCES}
    assert "skyreels_model.rollout.film" in graph["skyreels_model.rollout.loop"]
    assert any("skyreels_model.rollout" in found for n, found in graph.items() if "host" in n)
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
