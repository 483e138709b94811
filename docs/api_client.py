"""Make a film by ComfyUI's API: `python3 api_client.py WORKFLOW.json [--set NODE.INPUT=VALUE]`.

One file, plain Python 3.10, nothing to install: copy it and change it. WORKFLOW is a workflow that
was saved by Export (API), such as those in `workflows/api/`. `docs/api.md` explains each step.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDS = ("execution_success", "execution_error", "execution_interrupted")


class ComfyUI:
    """A running ComfyUI, and this program as one of its clients."""

    def __init__(self, url: str) -> None:
        self.url, self.client = url.rstrip("/"), uuid.uuid4().hex

    def ask(self, path: str, body: dict[str, Any] | None = None) -> bytes:
        """What ComfyUI answers to a GET, or to a POST of `body`."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, content, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def queue(self, prompt: dict[str, Any]) -> str:
        """Hand in a graph; its id. One that ComfyUI refuses ends the program with the reason."""
        try:
            answer = self.ask("/prompt", {"prompt": prompt, "client_id": self.client})
        except urllib.error.HTTPError as error:
            refused = json.loads(error.read())
            sys.exit(f"refused: {refused['error']['message']}\n{list_errors(refused)}")
        return json.loads(answer)["prompt_id"]

    def events(self) -> Iterator[dict[str, Any]]:
        """The messages that ComfyUI sends while it works, as they come (a WebSocket)."""
        parts = urllib.parse.urlsplit(self.url)
        key = base64.b64encode(os.urandom(16)).decode()
        with socket.create_connection((parts.hostname, parts.port or 80)) as connection:
            stream = connection.makefile("rb")
            connection.sendall(
                f"GET {parts.path}/ws?clientId={self.client} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
                f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            while stream.readline().strip():
                pass  # the answer's head
            yield {"type": "connected", "data": {}}
            while True:
                kind, size = stream.read(2)
                if size > 125:
                    size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
                content = stream.read(size)
                if kind == 0x81:  # text; previews are binary
                    yield json.loads(content)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Make a film, and say how far it is. Ctrl-C cancels it. Returns ComfyUI's record of it."""
        events = self.events()
        next(events)  # listen first, so that nothing is missed
        number, end = self.queue(prompt), None
        try:
            for event in events:
                data = event["data"]
                if data.get("prompt_id") != number:
                    continue
                if event["type"] == "progress_state":
                    show_progress(prompt, data["nodes"])
                if event["type"] in ENDS:
                    end = event["type"], data
                    break
        except KeyboardInterrupt:
            self.ask("/interrupt", {"prompt_id": number})
            sys.exit("cancelled. With SkyReels-V2 Store in the graph, queue it again to go on")
        while not (record := json.loads(self.ask(f"/history/{number}"))):
            time.sleep(0.1)  # it is written after the last message
        messages = record[number]["status"]["messages"]
        if end and all(name != end[0] for name, _ in messages):
            messages.append(end)  # of an output that a node has stopped, the record says nothing
        return record[number]

    def download(self, record: dict[str, Any], folder: Path) -> list[Path]:
        """Fetch the files that the graph saved."""
        found = []
        for output in record["outputs"].values():
            items = [item for items in output.values() for item in items]
            for file in [item for item in items if isinstance(item, dict) and "filename" in item]:
                path = folder / Path(file["filename"]).name
                path.write_bytes(self.ask(f"/view?{urllib.parse.urlencode(file)}"))
                found.append(path)
        return found


def show_progress(prompt: dict[str, Any], nodes: dict[str, Any]) -> None:
    for number, state in nodes.items():
        if state["state"] == "running" and number in prompt:
            kind = prompt[number]["class_type"]
            print(f"\r{kind}: {state['value']:.0f} of {state['max']:.0f}   ", end="", flush=True)


def list_errors(refused: dict[str, Any]) -> str:
    """What is wrong, a line for each input."""
    return "\n".join(
        f"node {number} ({node['class_type']}): {error['message']}: {error['details']}"
        for number, node in refused.get("node_errors", {}).items()
        for error in node["errors"]
    )


def set_inputs(prompt: dict[str, Any], changes: list[str]) -> None:
    """Apply NODE.INPUT=VALUE; VALUE is JSON (65, true) or else a text."""
    for change in changes:
        place, _, value = change.partition("=")
        node, _, name = place.partition(".")
        try:
            prompt[node]["inputs"][name] = json.loads(value)
        except ValueError:
            prompt[node]["inputs"][name] = value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workflow", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="NODE.INPUT=VALUE")
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--out", type=Path, default=Path("."))
    options = parser.parse_args()
    prompt = json.loads(options.workflow.read_text(encoding="utf-8"))
    set_inputs(prompt, options.set)
    comfyui = ComfyUI(options.server)
    record = comfyui.run(prompt)
    print()
    for event, data in record["status"]["messages"]:
        if event == "execution_error":
            sys.exit(f"{data['node_type']} (node {data['node_id']}): {data['exception_message']}")
        if event == "execution_interrupted":
            sys.exit("somebody cancelled it")
    for path in comfyui.download(record, options.out):
        print(path)


if __name__ == "__main__":
    main()
