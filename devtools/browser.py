"""A headless Chromium, driven over its own debugging protocol: no package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import ProxyHandler, build_opener

from devtools import process
from devtools.cache import SetupError
from devtools.websocket import WebSocket

PATH_VARIABLE = "CHROMIUM_PATH"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
START_SECONDS, ANSWER_SECONDS = 60.0, 60.0
FLAGS = (
    "--headless=new --remote-debugging-port=0 --no-first-run --no-default-browser-check "
    "--disable-background-networking --disable-component-update --disable-sync --disable-gpu "
    "--disable-dev-shm-usage --disable-quic --hide-scrollbars --mute-audio "
    "--window-size=1600,1000"
).split()


def find_chromium() -> Path | None:
    """The Chromium of this machine, or the one that CHROMIUM_PATH names; None without one."""
    named = os.environ.get(PATH_VARIABLE)
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    return Path(found) if found else None


class PageError(Exception):
    """A script in the page failed, or did not come to its end."""


class Page:
    """One tab. `problems` are its errors: of the console, of scripts, and of what was not found."""

    def __init__(self, address: str) -> None:
        self._socket = WebSocket(address, START_SECONDS)
        self._number = 0
        self.problems: list[str] = []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Give a command of the protocol; its result. Raises PageError where it fails."""
        self._number += 1
        number = self._number
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        deadline = time.monotonic() + ANSWER_SECONDS
        while True:
            message = json.loads(self._socket.receive(max(deadline - time.monotonic(), 0.01)))
            self._note(message)
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error']}")
                return message.get("result", {})

    def run(self, script: str, **names: Any) -> Any:
        """The value of a function's body in JavaScript, which may await; names: its constants."""
        given = "".join(f"const {name} = {json.dumps(value)};" for name, value in names.items())
        answer = self.call(
            "Runtime.evaluate",
            expression=f"(async () => {{ {given} {script} }})()",
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in answer:
            raise PageError(_describe(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0, **names: Any) -> None:
        """Wait until an expression in JavaScript is true."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                holds = self.run(f"return Boolean({condition})", **names)
            except PageError as error:
                if "navigat" not in str(error).lower() and "context" not in str(error).lower():
                    raise
                holds = False  # the page was just being loaded
            if holds:
                return
            if time.monotonic() > deadline:
                raise PageError(f"after {seconds:g} s this is not so: {condition}")
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Load an address; what is on it may take longer."""
        self.call("Page.navigate", url=url)

    def press(self, key: str, code: int) -> None:
        """Press a key, by its name and its number."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, file: Path) -> None:
        """Write a PNG of what is seen."""
        file.parent.mkdir(parents=True, exist_ok=True)
        data = self.call("Page.captureScreenshot", format="png", optimizeForSpeed=True)["data"]
        file.write_bytes(base64.b64decode(data))

    def close(self) -> None:
        self._socket.close()

    def _note(self, message: Mapping[str, Any]) -> None:
        given = message.get("params", {})
        if message.get("method") == "Page.javascriptDialogOpening":
            # Such as whether to leave a page with changes: yes. Until then all else waits.
            accept = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self._socket.send(json.dumps(accept))
        if message.get("method") == "Runtime.exceptionThrown":
            self.problems.append(_describe(given["exceptionDetails"]))
        elif message.get("method") == "Runtime.consoleAPICalled" and given["type"] == "error":
            said = [str(one.get("value", one.get("description"))) for one in given["args"]]
            self.problems.append(" ".join(said))
        elif message.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
            entry = given["entry"]
            self.problems.append(f"{entry['text']} {entry.get('url', '')}")


def _describe(details: Mapping[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details.get("text"))


class Browser:
    """Entering it starts Chromium with an empty profile in `folder`; leaving ends it."""

    def __init__(self, program: Path, folder: Path) -> None:
        self._program, self._folder = program, folder
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> Browser:
        self._folder.mkdir(parents=True, exist_ok=True)
        command: list[str | Path] = [self._program, *FLAGS, f"--user-data-dir={self._folder}"]
        # Chromium refuses to run as root in its sandbox, as in containers.
        command += ["--no-sandbox"] if sys.platform == "linux" and os.geteuid() == 0 else []
        self._child = process.start([*command, "about:blank"], False, self._folder / "browser.log")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._child is not None:
            # Asked to end, it takes its time; the profile is thrown away.
            self._child.kill()
            self._child.wait()

    def page(self) -> Page:
        """Its first tab; SetupError where it does not come up."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._child is not None and self._child.poll() is not None:
                break
            try:
                return Page(self._first_tab())
            except (OSError, ValueError, StopIteration):
                time.sleep(0.1)
        raise SetupError(f"{self._program} did not come up; see {self._folder / 'browser.log'}")

    def _first_tab(self) -> str:
        port = int((self._folder / "DevToolsActivePort").read_text().split()[0])
        opener = build_opener(ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=5) as answer:
            tabs = json.load(answer)
        return next(tab for tab in tabs if tab["type"] == "page")["webSocketDebuggerUrl"]
