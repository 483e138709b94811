"""What every test shares: the pack's plain packages under their own names, and the golden data.

The repository root is itself a package that needs a ComfyUI host, and its `nodes/` would shadow
the host's `nodes.py`; so the root never goes on `sys.path`, and the host-free packages are
registered one by one instead.
"""

import importlib.util
import pathlib
import sys

import pytest
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]


def register(name: str, folder: pathlib.Path) -> None:
    """Make `folder` importable as the top-level package `name`."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


register("skyreels_model", ROOT / "skyreels_model")
register("toy", ROOT / "toy")
register("golden_data", ROOT / "tests" / "golden_data")
register("devtools", ROOT / "devtools")
register("graphs", ROOT / "tests" / "graphs")
register("sentences", ROOT / "tests" / "sentences")
register("gpu", ROOT / "benchmarks" / "gpu")
register("card", ROOT / "tests" / "card")
register("store_films", ROOT / "tests" / "store_films")
register("pages", ROOT / "tests" / "pages")
register("tiny_words", ROOT / "tests" / "tiny_words")
if importlib.util.find_spec("hypothesis"):
    register("hostile", ROOT / "tests" / "hostile")


def pytest_collection_modifyitems(items):
    """Whatever needs a host or makes whole films is slow."""
    for item in items:
        if any(item.path.is_relative_to(ROOT / "tests" / room) for room in ("host", "semantic")):
            item.add_marker("slow")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """No test sees where the one before left PyTorch's global generator."""
    torch.manual_seed(0)


@pytest.fixture
def larger_than_memory() -> int:
    """Bytes of which Linux makes no private mapping: twice what memory and swap are."""
    if sys.platform != "linux":
        pytest.skip("other systems set memory aside for mappings in other ways")
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    sizes = {key: int(rest.split()[0]) * 1024 for key, rest in (s.split(":") for s in lines)}
    return 2 * (sizes["MemTotal"] + sizes["SwapTotal"]) // 4096 * 4096
