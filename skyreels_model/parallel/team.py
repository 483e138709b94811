"""The worker processes of a run, and their one end: whatever fails, all are ended, with one error.

A worker that dies is seen by its thread. One that hangs is seen by time: a forward may take
`patience` seconds. Both end all workers, which ends what this process waits for.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .channel import Message
from .degrees import Degrees
from .groups import Mesh
from .process import Launch, WorkerProcess

START_LIMIT = 120.0  # seconds until a started process answers
LOAD_LIMIT = 1800.0  # until it has loaded a model, from a slow disk
JOIN_LIMIT = 60.0  # until all have found each other
CAUSE_WAIT = 2.0  # until the cause of a failed exchange is known
LISTEN_SECONDS = 0.1
REST = 0.3  # in which others tell their errors, of which one is the cause
# What workers say who only lost another.
LOST = ("Connection closed", "onnection reset", "Socket closed", "timed out", "Broken pipe")


class TeamFailed(RuntimeError):
    """A worker has failed, and all have been ended."""


class Team:
    """Workers of ranks 1 and up; this process is rank 0.

    launch: makes, of a folder for logs, how each worker is started. device: where rank 0 computes.
    listen: called while workers are waited for; what it raises, as a cancel, ends them. sharded:
    the ranks hold the model's weights in parts.
    """

    def __init__(
        self,
        launch: Callable[[Path], Sequence[Launch]],
        degrees: Degrees,
        device: torch.device | str = "cpu",
        patience: float = 300.0,
        listen: Callable[[], None] = lambda: None,
        sharded: bool = False,
    ) -> None:
        self.degrees, self.patience, self.listen = degrees, patience, listen
        self.device, self.sharded = torch.device(device), sharded and degrees.world > 1
        self.failure: str | None = None
        self.busy = False  # with a forward, which all ranks have to finish
        self.failed, self.lock = threading.Event(), threading.Lock()
        self.folder = Path(tempfile.mkdtemp(prefix="skyreels-v2-"))
        notice = weakref.WeakMethod(self._note_end)

        def on_end() -> None:
            call = notice()
            if call is not None:
                call()

        self.workers = [WorkerProcess(each, on_end) for each in launch(self.folder)]
        # Not by its own methods: a team that no one has any more must end.
        self.closing: list[Callable[[], None]] = []
        self.finish = weakref.finalize(self, _finish, self.workers, self.folder, self.closing)
        self.mesh = Mesh() if not self.workers else None

    def start(self, setup: Message) -> None:
        """Give each process what it needs to know, and wait until all have answered."""
        self.ask({"do": "start", **setup}, START_LIMIT)

    def ask(
        self, message: Message, limit: float, tensors: Mapping[str, Tensor] | None = None
    ) -> list[Message]:
        """Send all workers a message and wait for their answers; TeamFailed where one has none."""
        self._send(message, tensors)
        return self._collect(str(message["do"]), limit)

    def join(self) -> None:
        """Let all ranks find each other, by a file in a folder of this user's alone."""
        if not self.workers:
            return
        path = str(self.folder / "ranks")
        given = {"world": self.degrees.world, "patience": self.patience, "path": path}
        given["sharded"] = self.sharded
        dimensions = [self.degrees.prompts, self.degrees.heads, self.degrees.ring]
        for rank, worker in enumerate(self.workers, start=1):
            worker.channel.send({"do": "join", "rank": rank, "degrees": dimensions, **given})

        def connect() -> None:
            store = dist.FileStore(path, self.degrees.world)
            self.mesh = Mesh(self.degrees, 0, store, self.device, self.patience, self.sharded)
            if self.mesh.shards is not None:
                self.closing.append(self.mesh.shards.close)

        self._wait_for(connect, JOIN_LIMIT)
        self._collect("join", JOIN_LIMIT)

    def shard(self, call: Callable[[Mesh], None], limit: float) -> None:
        """Let all ranks keep their share of the weights, this one by `call`."""
        self._send({"do": "shard"})
        assert self.mesh is not None
        call(self.mesh)
        self._collect("shard", limit)

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """A shared forward inside; TeamFailed where a worker fails or it takes too long.

        Another error inside ends the workers, if they have begun: they wait for this rank.
        """
        self._raise_failure()
        self.busy = False
        told = f"a model call took longer than {self.patience:g} seconds"
        timer = threading.Timer(self.patience, self.fail, (told,))
        timer.daemon = True
        timer.start()
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except BaseException as error:
            if self.busy:
                self._end_with(error)
            raise
        finally:
            timer.cancel()
            self.busy = False
        self._raise_failure()

    def begin(self, settings: Message, tensors: Mapping[str, Tensor]) -> None:
        """Have the workers run a forward with these tensors; then this rank has to."""
        if not self.workers:
            return
        self.busy = True
        assert self.mesh is not None
        named = [[k, list(t.shape), str(t.dtype)[6:]] for k, t in tensors.items()]
        self._send({"do": "forward", "tensors": named, "settings": settings})
        for tensor in tensors.values():
            self.mesh.world.broadcast(tensor.contiguous())

    def fail(self, reason: str) -> None:
        """End all workers for this reason, unless there was one before."""
        with self.lock:
            if self.failure is None:
                self.failure = reason
        for worker in self.workers:
            worker.kill()
        if self.mesh is not None:
            self.mesh.abort()
        self.failed.set()

    def close(self) -> None:
        """End all workers and wait until they have; the team can be used no more."""
        self.fail("the team was closed")
        self.finish()

    def _send(self, message: Message, tensors: Mapping[str, Tensor] | None = None) -> None:
        self._raise_failure()
        try:
            for worker in self.workers:
                worker.channel.send(message, tensors)
        except OSError as error:
            self._end_with(error)
            raise

    def _collect(self, asked: str, limit: float) -> list[Message]:
        """The workers' next answers."""
        end = time.monotonic() + limit
        return [self._await_answer(worker, asked, limit, end) for worker in self.workers]

    def _await_answer(self, worker: WorkerProcess, asked: str, limit: float, end: float) -> Message:
        while time.monotonic() < end:
            with contextlib.suppress(queue.Empty):
                answer = worker.answers.get(timeout=LISTEN_SECONDS)
                if answer is not None:
                    return answer
                self.failed.wait(CAUSE_WAIT)
                self.fail(f"{worker.launch.name} has ended")
            self._listen()
            self._raise_failure()
        self.fail(f"{worker.launch.name} took over {limit:g} seconds to {asked}")
        raise self._told_failure()

    def _listen(self) -> None:
        try:
            self.listen()
        except BaseException as error:
            self.fail(f"rank 0 was stopped ({type(error).__name__})")
            raise

    def _wait_for(self, call: Callable[[], None], limit: float) -> None:
        """Run what cannot be stopped in a thread, and leave it where a worker fails meanwhile."""
        errors: list[BaseException] = []
        done = threading.Event()

        def run() -> None:
            try:
                call()
            except BaseException as error:
                errors.append(error)
            done.set()

        threading.Thread(target=run, daemon=True).start()
        end = time.monotonic() + limit
        while not done.wait(LISTEN_SECONDS):
            self._listen()
            if time.monotonic() > end:
                self.fail(f"the workers did not find each other in {limit:g} seconds")
            self._raise_failure()
        if errors:
            self._end_with(errors[0])
            raise errors[0]

    def _note_end(self) -> None:
        """A worker has ended: tell why, as the one does that has not only lost another."""
        if self.failed.is_set():
            return
        time.sleep(REST)
        ended = [worker for worker in self.workers if worker.ended]
        self.fail(min(ended, key=_is_secondary).describe_end())

    def _end_with(self, error: BaseException) -> None:
        """End the team after an error here, which is that of a worker if one has failed."""
        exchange = isinstance(error, RuntimeError | OSError)
        if exchange and not isinstance(error, torch.OutOfMemoryError):
            self.failed.wait(CAUSE_WAIT)
        if self.failure is not None:
            raise self._told_failure() from error
        self.fail(f"rank 0 failed: {error}")

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self._told_failure()

    def _told_failure(self) -> TeamFailed:
        return TeamFailed(f"{self.failure}. All workers were ended. Queue again to start new ones")


def _is_secondary(worker: WorkerProcess) -> bool:
    said: Any = (worker.error or {}).get("error", "")
    return any(words in said for words in LOST)


def _finish(
    workers: Sequence[WorkerProcess], folder: Path, closing: Sequence[Callable[[], None]]
) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.close()
    for close in closing:
        close()
    shutil.rmtree(folder, ignore_errors=True)
