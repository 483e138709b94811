"""A client for a running ComfyUI server: queue a prompt, follow it, fetch what it made."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import ProxyHandler, Request, build_opener

from devtools import outcome
from devtools.cache import SetupError
from devtools.outcome import OnEvent, OutputFile, Result
from devtools.prompt import InvalidPrompt, Prompt, declared_inputs
from devtools.websocket import WebSocket, WebSocketError

ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
SILENCE_SECONDS = 5.0
POLL_SECONDS = 1.0
# How often in a row the server may not answer, or not know the prompt, before it counts as lost.
PATIENCE = 10


class Client:
    """Speaks with the ComfyUI server at `url`, as one client of its own."""

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._id = uuid.uuid4().hex
        # Straight to the server: the websocket knows no proxy either.
        self._opener = build_opener(ProxyHandler({}))

    def run(self, prompt: Prompt, on_event: OnEvent) -> Result:
        """Queue `prompt`, follow it to its end, and return its result.

        Interrupting this (KeyboardInterrupt) interrupts the prompt on the server first. Raises
        InvalidPrompt when the server refuses it, SetupError when no server answers.
        """
        socket = self._listen()
        prompt_id = None
        try:
            prompt_id = self.queue(prompt)
            self._follow(socket, prompt_id, on_event)
            entry = self._finished(prompt_id)
        except KeyboardInterrupt:
            if prompt_id is not None:
                self.interrupt(prompt_id)
            raise
        finally:
            if socket is not None:
                socket.close()
        return outcome.result(entry["status"]["messages"], entry["outputs"])

    def queue(self, prompt: Prompt) -> str:
        """Hand in `prompt`; its id on the server."""
        try:
            return self._post("/prompt", {"prompt": prompt, "client_id": self._id})["prompt_id"]
        except HTTPError as error:
            answer = _json_body(error)
            if error.code == 400 and "error" in answer:
                raise InvalidPrompt(answer["error"], answer.get("node_errors") or {}) from error
            raise SetupError(f"{self.url} answered {error.code} {error.reason}") from error
        except URLError as error:
            raise self._unreachable(error) from error

    def history(self, prompt_id: str) -> Mapping[str, Any] | None:
        """The server's record of a prompt that has ended, None before."""
        return self._get(f"/history/{prompt_id}").get(prompt_id)

    def inputs(self, kind: str) -> list[str] | None:
        """The inputs that a class of nodes declares; None for a class the server does not have."""
        try:
            info = self._get(f"/object_info/{quote(kind, safe='')}").get(kind)
        except OSError as error:
            raise self._unreachable(error) from error
        return None if info is None else declared_inputs(info["input"])

    def interrupt(self, prompt_id: str) -> None:
        """Stop the prompt if it runs, take it off the queue if it waits."""
        self._post("/queue", {"delete": [prompt_id]})
        self._post("/interrupt", {"prompt_id": prompt_id})

    def download(self, file: OutputFile, folder: Path) -> Path:
        """Fetch an output file into `folder`, under its name on the server."""
        target = folder / file.relative
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        query = {"filename": file.filename, "subfolder": file.subfolder, "type": file.kind}
        try:
            with self._open(f"/view?{urlencode(query)}") as answer, open(partial, "wb") as out:
                shutil.copyfileobj(answer, out)
            partial.replace(target)
        except OSError as error:
            raise SetupError(f"cannot fetch {file.relative} from {self.url}: {error}") from error
        return target

    def answers(self, path: str) -> bool:
        """Whether the server answers `path`."""
        try:
            self._get(path)
        except (OSError, ValueError):
            return False
        return True

    def _listen(self) -> WebSocket | None:
        url = "ws" + self.url.removeprefix("http") + f"/ws?clientId={self._id}"
        try:
            return WebSocket(url, self._timeout)
        except WebSocketError:
            # A gateway may pass HTTP only: then there is no progress, but a result.
            return None
        except OSError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: OSError) -> SetupError:
        reason = getattr(error, "reason", error)
        return SetupError(f"no ComfyUI server answers at {self.url}: {reason}")

    def _follow(self, socket: WebSocket | None, prompt_id: str, on_event: OnEvent) -> None:
        """Pass events on until the prompt has ended or the websocket is lost."""
        heard = time.monotonic()
        while socket is not None:
            try:
                # Short, because on Windows a waiting socket is deaf to Ctrl-C.
                message = socket.receive(timeout=POLL_SECONDS)
            except TimeoutError:
                if time.monotonic() - heard > SILENCE_SECONDS:
                    heard = time.monotonic()
                    if self._knows_end_of(prompt_id):
                        return
                continue
            except OSError:
                return
            heard = time.monotonic()
            if isinstance(message, str) and self._is_last(message, prompt_id, on_event):
                return

    def _is_last(self, message: str, prompt_id: str, on_event: OnEvent) -> bool:
        content = json.loads(message)
        event, data = content.get("type"), content.get("data") or {}
        if data.get("prompt_id") != prompt_id:
            return False
        on_event(event, data)
        return event in ENDINGS

    def _knows_end_of(self, prompt_id: str) -> bool:
        try:
            return self.history(prompt_id) is not None
        except (OSError, ValueError):
            return False

    def _finished(self, prompt_id: str) -> Mapping[str, Any]:
        """Wait for the prompt's record; SetupError when the server has gone or lost it."""
        misses = 0
        while misses < PATIENCE:
            try:
                entry = self.history(prompt_id)
                if entry is not None:
                    return entry
                misses = 0 if self._is_queued(prompt_id) else misses + 1
            except (OSError, ValueError):
                misses += 1
            time.sleep(POLL_SECONDS if misses else POLL_SECONDS / 5)
        raise SetupError(f"{self.url} went away, or no longer knows prompt {prompt_id}")

    def _is_queued(self, prompt_id: str) -> bool:
        queue = self._get("/queue")
        items = queue.get("queue_running", []) + queue.get("queue_pending", [])
        return any(item[1] == prompt_id for item in items)

    def _open(self, path: str, body: bytes | None = None) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        request = Request(self.url + path, data=body, headers=headers)
        return self._opener.open(request, timeout=self._timeout)

    def _get(self, path: str) -> dict[str, Any]:
        with self._open(path) as answer:
            return json.load(answer)

    def _post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        with self._open(path, json.dumps(content).encode()) as answer:
            body = answer.read()
        return json.loads(body) if body else {}


def _json_body(error: HTTPError) -> dict[str, Any]:
    try:
        answer = json.loads(error.read())
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
