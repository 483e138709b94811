"""What every test shares: the pack's plain packages under their own names, and the golden data.

The repository root is itself a package that needs a ComfyUI host, and its `nodes/` would shadow
the host's `nodes.py`; so the root never goes on `sys.path`, and the host-free packages are
registered one by one instead.
"""

import importlib.util
import pathlib
import sys

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
