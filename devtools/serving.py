"""A real ComfyUI server of our own, as a child process, with this pack in its custom_nodes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import TracebackType

from devtools import process
from devtools.cache import SetupError
from devtools.remote import Client

PACK = Path(__file__).resolve().parents[1]
PACK_FOLDER = "skyreels-v2"
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
START_SECONDS = 180.0


def prepare_base(base: Path, pack: Path = PACK) -> Path:
    """Make `base` a ComfyUI base directory whose custom_nodes holds a link to `pack`."""
    for name in FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_FOLDER
    if os.path.lexists(link) and not (link.exists() and os.path.samefile(link, pack)):
        _remove_link(link)
    if not os.path.lexists(link):
        _make_link(link, pack)
    return base


def _make_link(link: Path, pack: Path) -> None:
    try:
        link.symlink_to(pack, target_is_directory=True)
    except OSError:
        if sys.platform != "win32":
            raise
        # Symbolic links need a privilege on Windows, junctions do not.
        subprocess.run(junction_command(link, pack), check=True, stdout=subprocess.DEVNULL)


def junction_command(link: PurePath, target: PurePath) -> str:
    """The command of Windows that makes `link` a junction to `target`, whatever their names."""
    # Always quoted: `&` and `^` have a meaning outside of quotes, and a list quotes only spaces.
    return f'cmd /d /c mklink /J "{link}" "{target}"'


def _remove_link(link: Path) -> None:
    if link.is_symlink():
        link.unlink()
    else:
        # A junction: this removes it, and refuses to remove a folder with content.
        link.rmdir()


def free_port(wished: int | None = None) -> int:
    """`wished` if nothing listens there (SetupError otherwise); any free port without a wish."""
    with socket.socket() as probe:
        if sys.platform != "win32":
            # A port of a server that has just ended is free, although it lingers.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wished or 0))
        except OSError as error:
            raise SetupError(f"--port {wished}: {error}; {free_port()} is free") from error
        return probe.getsockname()[1]


@dataclass
class Server:
    """How to start a server; entering it starts it and waits until it answers, leaving stops it.

    Its log goes to the file `log`, or to this process's output. Without `page` it serves no web
    page, and needs no packages for one; `front` is the folder of another page than the host's.
    Raises SetupError when it does not come up.
    """

    python: Path
    host: Path
    base: Path
    port: int
    cpu: bool
    page: bool = False
    front: Path | None = None
    log: Path | None = None
    offline: bool = False
    pack: Path = PACK
    output: Path | None = None
    input: Path | None = None
    models: Sequence[Path] = ()
    _child: subprocess.Popen | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def output_folder(self) -> Path:
        """Where its output files lie."""
        return self.output or self.base / "output"

    def __enter__(self) -> Server:
        prepare_base(self.base, self.pack)
        self._child = process.start(self._command(), self.offline, self.log)
        try:
            self._await_answer()
        except BaseException:
            process.stop(self._child)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._child is not None:
            process.stop(self._child)

    def kill(self) -> None:
        """End the server at once, as a crash does: nothing is told, nothing is tidied up."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def wait(self) -> int:
        """Wait until the server ends, passing interrupts on to it; its exit code."""
        if self._child is None:
            raise ValueError("the server was not started: use it in a `with` statement")
        return process.wait(self._child)

    def _command(self) -> list[str | Path]:
        launcher = Path(__file__).with_name("server.py")
        command: list[str | Path] = [self.python, launcher, self.host, "--port", str(self.port)]
        command += ["--base-directory", self.base, "--temp-directory", self.base]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        command += ["--cpu"] if self.cpu else []
        command += ["--output-directory", self.output] if self.output else []
        command += ["--input-directory", self.input] if self.input else []
        for number, folder in enumerate(self.models):
            command += ["--extra-model-paths-config", self._models_file(number, folder)]
        front = self.front if self.page else self._empty_page()
        command += ["--front-end-root", front] if front else []
        return command

    def _models_file(self, number: int, folder: Path) -> Path:
        names = sorted(child.name for child in folder.iterdir() if child.is_dir())
        content = {"dev": {"base_path": str(folder), "is_default": True, **{n: n for n in names}}}
        file = self.base / f"extra_models_{number}.yaml"
        # JSON is YAML, and needs no package to write.
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    def _empty_page(self) -> Path:
        folder = self.base / "empty_page"
        folder.mkdir(exist_ok=True)
        (folder / "index.html").write_text("<title>ComfyUI</title>", encoding="utf-8")
        return folder

    def _await_answer(self) -> None:
        client = Client(self.url, timeout=5.0)
        deadline = time.monotonic() + START_SECONDS
        while not client.answers("/object_info/SaveImage"):
            code = self._child.poll() if self._child is not None else None
            if code is not None:
                raise SetupError(f"the server ended with code {code}{self._tail()}")
            if time.monotonic() > deadline:
                raise SetupError(
                    f"the server gave no answer in {START_SECONDS:.0f} s{self._tail()}"
                )
            time.sleep(0.25)

    def _tail(self, lines: int = 40) -> str:
        """The end of the server's log, to be put after a message."""
        if self.log is None or not self.log.is_file():
            return ""
        text = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "; the end of its log:\n" + "\n".join(text[-lines:])
