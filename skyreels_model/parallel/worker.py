"""What a worker process does: it obeys its channel, and never outlives who started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from .channel import Channel, Message
from .degrees import Degrees
from .groups import Mesh

PR_SET_PDEATHSIG = 1
CHECK_SECONDS = 1.0


class Follower(Protocol):
    """What holds the model in a worker, and runs its forwards. Answers go back as they are."""

    device: torch.device

    def answer(self, message: Message, tensors: dict[str, Tensor]) -> Message:
        """Whatever is neither a join nor a forward."""

    def shard(self, mesh: Mesh) -> None:
        """Keep this rank's share of the weights; only where they are to be in parts."""

    def forward(self, mesh: Mesh, settings: Message, tensors: dict[str, Tensor]) -> None:
        """This rank's part of a forward."""


def end_with_parent(parent: int) -> None:
    """From now on this process ends when its parent does, however that ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        # Also where Linux's signal is not sent, as after a change of user.
        while os.getppid() == parent:
            threading.Event().wait(CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def open_channel() -> Channel:
    """The channel of a process that `WorkerProcess` has started, by its arguments."""
    end_with_parent(int(sys.argv[2]))
    return Channel(socket.socket(fileno=int(sys.argv[1])))


def serve(channel: Channel, make: Callable[[Message], Follower]) -> NoReturn:
    """Obey until the channel closes; then, or after an error, end this process.

    make: the follower, by the first message.
    """
    try:
        message, _ = channel.receive()
        follower = make(message)
        channel.send({"done": "start"})
        mesh: Mesh | None = None
        while True:
            message, tensors = channel.receive()
            if message["do"] == "forward":
                assert mesh is not None
                with torch.inference_mode():
                    run_forward(follower, mesh, message)
            elif message["do"] == "join":
                mesh = join(message, follower.device)
                channel.send({"done": "join"})
            elif message["do"] == "shard":
                assert mesh is not None
                follower.shard(mesh)
                channel.send({"done": "shard"})
            else:
                channel.send(follower.answer(message, tensors))
    except EOFError:
        code = 0
    except BaseException as error:
        traceback.print_exc()
        tell_error(channel, error)
        code = 1
    sys.stderr.flush()
    os._exit(code)  # what waits for other ranks would keep it


def run_forward(follower: Follower, mesh: Mesh, message: Message) -> None:
    given: dict[str, Tensor] = {}
    for name, shape, dtype in message["tensors"]:
        kind: Any = getattr(torch, dtype)
        given[name] = torch.empty(shape, dtype=kind, device=follower.device)
        mesh.world.broadcast(given[name])
    follower.forward(mesh, message["settings"], given)


def join(message: Message, device: torch.device) -> Mesh:
    store = dist.FileStore(message["path"], message["world"])
    degrees = Degrees(*message["degrees"])
    given = message["rank"], store, device, message["patience"], message["sharded"]
    return Mesh(degrees, *given)


def tell_error(channel: Channel, error: BaseException) -> None:
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    kind = "memory" if memory or "out of memory" in str(error).lower() else "error"
    told = f"{type(error).__name__}: {error}".strip(": ")
    with contextlib.suppress(OSError):
        channel.send({"error": told, "kind": kind})
