"""What a run came to, in the words of ComfyUI's messages, whichever way it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any, NamedTuple

from devtools.cache import SetupError

# Called with ComfyUI's event name and its data, as they go over the websocket.
OnEvent = Callable[[str, Mapping[str, Any]], None]


class OutputFile(NamedTuple):
    """A file a node wrote: its name and subfolder below the folder for `kind` (output, temp)."""

    filename: str
    subfolder: str
    kind: str

    @property
    def relative(self) -> PurePosixPath:
        """The path below the folder; SetupError when it would lead out of it."""
        return self.path_inside(PurePath)

    def path_inside(self, system: type[PurePath]) -> PurePosixPath:
        """`relative` on a system with such paths: only Windows has drives and backslashes."""
        # A host on Windows has them between the names of subfolders.
        path = PurePosixPath(self.subfolder.replace("\\", "/")) / self.filename
        local = system(str(path))
        if local.anchor or ".." in local.parts:
            raise SetupError(f"the host names a file outside of its folder: {path}")
        return path


@dataclass(frozen=True)
class Result:
    """Outputs by node id, and for a run that failed ComfyUI's description of the failure."""

    success: bool
    outputs: Mapping[str, Mapping[str, Any]]
    error: Mapping[str, Any] | None = None
    interrupted: bool = False

    @property
    def files(self) -> list[OutputFile]:
        """Every file among the outputs, in the order of the nodes."""
        return list(_files(self.outputs.values()))

    def describe(self) -> str:
        """The failure in one line: node, class, exception and message."""
        error = self.error or {}
        where = f"node {error.get('node_id', '?')} ({error.get('node_type', '?')})"
        if self.interrupted:
            return f"interrupted at {where}"
        message = str(error.get("exception_message", "?")).strip()
        return f"{where} failed: {error.get('exception_type', '?')}: {message}"


def result(messages: Iterable[Any], outputs: Mapping[str, Mapping[str, Any]]) -> Result:
    """The Result of a run from its (event, data) status messages and its history's outputs."""
    failure: tuple[str, Mapping[str, Any]] | None = None
    for event, data in messages:
        if event in ("execution_error", "execution_interrupted"):
            failure = (event, data)
    if failure is None:
        return Result(True, outputs)
    return Result(False, outputs, failure[1], failure[0] == "execution_interrupted")


def _files(outputs: Iterable[Mapping[str, Any]]) -> Iterator[OutputFile]:
    for output in outputs:
        for items in output.values():
            for item in items if isinstance(items, (list, tuple)) else ():
                if isinstance(item, Mapping) and isinstance(item.get("filename"), str):
                    kind = item.get("type", "output")
                    yield OutputFile(item["filename"], item.get("subfolder", ""), kind)
