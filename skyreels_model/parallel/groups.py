"""Ranks that exchange tensors: gloo between processors, NCCL between NVIDIA cards.

The process groups are made directly and kept by their owner, so that PyTorch's default group, which
another program in this process may have, is left alone, and a failed run leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .degrees import Degrees
from .sharded import ShardGroup

LOOPBACK = "127.0.0.1"


class Group:
    """Some ranks, and what this one has sent to the others.

    engine: PyTorch's process group; None where this rank is alone. sent: bytes.
    """

    def __init__(self, engine: Any, rank: int, size: int) -> None:
        self.engine, self.rank, self.size = engine, rank, size
        self.sent = 0

    def all_to_all(self, x: Tensor) -> Tensor:
        """x (size, …), part i for rank i -> (size, …), part i from rank i."""
        if self.size == 1:
            return x
        out = torch.empty_like(x)
        self.engine.alltoall_base(out, x, [], []).wait()
        self.sent += x.nbytes // self.size * (self.size - 1)
        return out

    def begin_shift(self, x: Tensor, shape: Sequence[int]) -> Callable[[], Tensor]:
        """Send x to the next rank; the call that waits for a tensor of `shape` from the last."""
        out = x.new_empty(shape)
        to, come = [0] * self.size, [0] * self.size
        to[(self.rank + 1) % self.size], come[self.rank - 1] = x.numel(), out.numel()
        # Uneven parts of one exchange: a send beside a receive could wait for each other for ever.
        work = self.engine.alltoall_base(out.view(-1), x.reshape(-1), come, to)
        self.sent += x.nbytes

        def finish() -> Tensor:
            work.wait()
            return out

        return finish

    def all_gather(self, x: Tensor) -> Tensor:
        """x of one shape on all ranks -> (size, *x.shape)."""
        if self.size == 1:
            return x[None]
        out = x.new_empty((self.size, *x.shape))
        self.engine.allgather([list(out.unbind())], [x.contiguous()]).wait()
        self.sent += x.nbytes * (self.size - 1)
        return out

    def broadcast(self, x: Tensor) -> None:
        """Rank 0's x into the x of all others, which must be contiguous."""
        if self.size == 1:
            return
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self.engine.broadcast([x], options).wait()
        if self.rank == 0:
            self.sent += x.nbytes * (self.size - 1)

    def abort(self) -> None:
        """End what is under way, which then fails or returns anything."""
        # With gloo an exchange ends by itself when a process of it has.
        if dist.is_nccl_available() and isinstance(self.engine, dist.ProcessGroupNCCL):
            with contextlib.suppress(RuntimeError):
                self.engine.abort()


class Mesh:
    """This rank's groups along each dimension of `degrees`; without a store, of one rank.

    store: where ranks find each other, of PyTorch. device: where this rank computes. patience:
    seconds that an exchange may take before it fails (gloo; with NCCL its owner counts). sharded:
    the model's weights lie in parts with all ranks (`shards`).
    """

    def __init__(
        self,
        degrees: Degrees = Degrees(),  # noqa: B008 (it is frozen)
        rank: int = 0,
        store: dist.Store | None = None,
        device: torch.device | str = "cpu",
        patience: float = 300.0,
        sharded: bool = False,
    ) -> None:
        self.degrees, self.rank = degrees, rank
        self.prompt, self.turn, self.head = degrees.place(rank)
        self.device = device = torch.device(device)
        self.ring_attention: dict[torch.dtype, Any] = {}  # chosen for the ring, by number format

        def make(name: str, place: int, size: int) -> Group:
            if size == 1:
                return Group(None, 0, 1)
            assert store is not None
            named = dist.PrefixStore(name, store)
            return Group(make_engine(named, place, size, device, patience), place, size)

        self.world = make("world", rank, degrees.world)
        # One rank's place in the other dimensions names the group that it shares.
        self.heads = make(f"heads {self.prompt} {self.turn}", self.head, degrees.heads)
        self.ring = make(f"ring {self.prompt} {self.head}", self.turn, degrees.ring)

        self.shards: ShardGroup | None = None
        if sharded and store is not None:
            self.shards = ShardGroup(store, rank, degrees.world, device, patience)

    @property
    def chunk(self) -> int:
        """Which part of a frame's tokens this rank has."""
        return self.turn * self.degrees.heads + self.head

    @property
    def sent(self) -> int:
        """Bytes that this rank has sent."""
        return sum(group.sent for group in (self.world, self.heads, self.ring))

    def abort(self) -> None:
        for group in (self.heads, self.ring, self.world):
            group.abort()
        if self.shards is not None:
            self.shards.abort()


def make_engine(
    store: dist.Store, rank: int, size: int, device: torch.device, patience: float
) -> Any:
    """PyTorch's process group for a device; waits until all ranks of the group have come."""
    limit = datetime.timedelta(seconds=math.ceil(patience))
    if device.type == "cpu":
        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        # By its name alone gloo would listen on whatever address the machine's name has.
        options._devices = [gloo.create_device(hostname=LOOPBACK)]
        options._timeout = limit
        return gloo(store, rank, size, options)
    # Its watchdog would end this whole process, ComfyUI, when a rank is late.
    os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    with torch.cuda.device(device):
        return dist.ProcessGroupNCCL(store, rank, size, options)
