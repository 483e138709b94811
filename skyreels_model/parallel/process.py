"""A worker process, watched by a thread that lives as long as it does."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .channel import Channel, Message

TAIL = 300  # characters of a worker's last words


@dataclass(frozen=True)
class Launch:
    """How to start a worker: it is given the number of its channel and its parent's as arguments.

    name: what people call it. log: the file of what it prints.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class WorkerProcess:
    """One worker: what it answers comes into `answers`, None when it has ended.

    on_end: called once, by its thread, after it has ended. error: what it said of its end.
    """

    def __init__(self, launch: Launch, on_end: Callable[[], None]) -> None:
        self.launch, self.on_end = launch, on_end
        self.answers: queue.Queue[Message | None] = queue.Queue()
        self.error: Message | None = None
        self.ended = False
        mine, self._theirs = socket.socketpair()
        self.channel = Channel(mine)
        self.process: subprocess.Popen[bytes] | None = None
        self.killed = threading.Event()
        # Linux ends a worker with the thread that started it: so that is this one, which waits.
        name = f"SkyReels-V2 {launch.name}"
        self.thread = threading.Thread(target=self._watch, daemon=True, name=name)
        self.thread.start()

    def _watch(self) -> None:
        try:
            self._start()
            with contextlib.suppress(EOFError):
                while True:
                    message, _ = self.channel.receive()
                    if "error" in message:
                        self.error = message
                    else:
                        self.answers.put(message)
        except OSError as error:  # it could not be started, or the channel was closed
            self.error = self.error or {"error": str(error), "kind": "start"}
        if self.process is not None:
            self.process.wait()
        self.ended = True
        self.answers.put(None)
        self.on_end()

    def _start(self) -> None:
        number = self._theirs.fileno()
        with self._theirs, self.launch.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*self.launch.command, str(number), str(os.getpid())],
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.launch.environment),
                start_new_session=True,  # Ctrl-C is for the program that started it
            )
        if self.killed.is_set():
            self.process.kill()

    def kill(self) -> None:
        self.killed.set()
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        """End it and wait until it has, its memory with it."""
        self.kill()
        if threading.current_thread() is not self.thread:
            self.thread.join(timeout=10)
        self.channel.close()

    def describe_end(self) -> str:
        """Why it has ended, for people."""
        name = self.launch.name
        if self.error and self.error.get("kind") == "memory":
            return f"{name} ran out of memory ({self.error['error']})"
        if self.error:
            return f"{name} failed: {self.error['error']}"
        code = self.process.returncode if self.process else None
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"{name} was ended by the system ({signal.Signals(-code).name})"
        return f"{name} ended with code {code}: {self._last_words()}"

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self.launch.log.read_text(errors="replace").strip()[-TAIL:]
        return ""
