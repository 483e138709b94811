"""Stand-ins for torchvision and torchaudio where they are not installed or cannot be imported.

ComfyUI imports both at start, for models this pack has nothing to do with; beside a CPU build of
torch their published wheels do not load. A stand-in can be imported, and raises when called.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from collections.abc import Sequence
from typing import Any, NoReturn

NAMES = ("torchvision", "torchaudio")


class _Missing:
    """Any attribute of a stand-in module, to any depth."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> _Missing:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _Missing(f"{self._name}.{attribute}")

    def __call__(self, *arguments: Any, **options: Any) -> NoReturn:
        raise RuntimeError(f"{self._name} was called, but {self._name.split('.')[0]} is not here")


class _Module(types.ModuleType):
    def __getattr__(self, attribute: str) -> _Missing:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return _Missing(f"{self.__name__}.{attribute}")


class _Finder:
    """A meta-path finder and loader in one, for `names` and everything below them."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        return None


def install() -> list[str]:
    """Put stand-ins in front of the modules of `NAMES` that do not import; returns their names."""
    return _put_in_front([name for name in NAMES if not _imports(name)])


def install_absent(names: Sequence[str]) -> list[str]:
    """The same for those of `names` that are not there at all, without starting a process."""
    return _put_in_front([name for name in names if importlib.util.find_spec(name) is None])


def _put_in_front(missing: list[str]) -> list[str]:
    if missing and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        _let_transformers_look_first()
        sys.meta_path.insert(0, _Finder(missing))  # type: ignore[arg-type]
    return missing


def _imports(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    # Elsewhere, because a failed import leaves half of the package behind, and because a server
    # on a GPU wants to choose its allocator before torch is first imported.
    command = [sys.executable, "-c", f"import {name}"]
    return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def _let_transformers_look_first() -> None:
    # It takes "can be found" for "is here", and remembers the answer.
    from transformers.utils import import_utils

    for question in (
        "is_torchvision_available",
        "is_torchvision_v2_available",
        "is_torchaudio_available",
    ):
        getattr(import_utils, question, bool)()
