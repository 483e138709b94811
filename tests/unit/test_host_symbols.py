"""The scan of ComfyUI's names: what it finds missing, and what it must not."""

import ast
import textwrap

import pytest

from devtools import host_symbols

HOST = {
    "comfy/model.py": """
        import other
        from .parts import *
        try:
            import fast
        except ImportError:
            fast = None
        def load(path, *, device=None): ...
        class Base:
            size: int = 3
            def __init__(self, path, dtype=None): self.path = path
        class Model(Base):
            class Input: ...
        class Of(other.Package): ...
        ANY = make()
    """,
    "comfy/parts.py": "def part(): ...",
    "comfy/__init__.py": "",
    "api/__init__.py": "",
    "folder_paths.py": "from comfy.model import load as get",
}


@pytest.fixture
def problems(tmp_path):
    """`problems(source)`: what a pack with this node finds missing in the small host."""
    for name, source in HOST.items():
        file = tmp_path / "host" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))

    def ask(source):
        (tmp_path / "pack" / "nodes").mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / "__init__.py").touch()
        (tmp_path / "pack" / "nodes" / "node.py").write_text(textwrap.dedent(source))
        host_symbols._parse.cache_clear()
        return host_symbols.scan(tmp_path / "pack", tmp_path / "host")

    return ask


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("import comfy.gone", "comfy.gone is missing"),
        ("from comfy.model import gone", "comfy.model.gone is missing"),
        ("import comfy.model as m\nm.gone", "comfy.model.gone is missing"),
        ("from comfy.model import Model\nModel.gone()", "comfy.model.Model.gone is missing"),
        ("import nodes", "nodes is missing"),
        ("import comfy.model\ncomfy.model.load()", "it wants path"),
        ("import comfy.model\ncomfy.model.load(1, 2)", "it takes 1 positional arguments, 2"),
        ("import comfy.model\ncomfy.model.load(1, dtype=2)", "it has no dtype"),
        ("from comfy import model\nmodel.Model(1, device=2)", "it has no device"),
        ("import folder_paths\nfolder_paths.get()", "it wants path"),
    ],
)
def test_what_is_missing_or_taken_otherwise_is_named(problems, source, missing):
    (found,) = problems(source)
    assert found.startswith("nodes/node.py:") and missing in found


@pytest.mark.parametrize(
    "source",
    [
        "import comfy.model\ncomfy.model.part(), comfy.model.fast, comfy.model.ANY.whatever",
        "import comfy.model\ncomfy.model.Model.Input, comfy.model.Model(1, dtype=2).path",
        "from comfy.model import Of\nOf.anything(1, 2, 3)",
        "import comfy.model\ncomfy.model.load(*given), comfy.model.load(1, **more)",
        "try:\n    import comfy.gone\nexcept ImportError:\n    comfy = None",
        "import other.thing\nother.thing.gone",
        "import comfy\ncomfy.__path__",
    ],
)
def test_what_is_there_or_may_be_missing_is_not(problems, source):
    assert not problems(source)


def test_a_chain_is_read_in_parts():
    (expression,) = ast.parse("a.b.c").body
    assert host_symbols.chain_of(expression.value) == ["a", "b", "c"]
    assert host_symbols.chain_of(ast.parse("f().b").body[0].value) == []
