"""Weights that lie in parts with all ranks: each holds a share of every block (FSDP2 of torch).

A block is gathered before it runs and given up after it, so that a rank never has more than its
share and one block. FSDP2 works on PyTorch's default process group, of which a process has one.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from ..model.config import ModelConfig
from ..model.layers import Block, BlockInputs, Factory


class ShardGroup:
    """All ranks, as FSDP2 wants them. Raises ValueError where the default group is another's."""

    def __init__(
        self, store: dist.Store, rank: int, world: int, device: torch.device, patience: float
    ) -> None:
        if dist.is_initialized():
            raise ValueError(
                "weights is sharded, which needs PyTorch's default process group, and another "
                "part of this program has it; set weights to whole"
            )
        backend = "gloo" if device.type == "cpu" else "nccl"
        # By its name alone gloo would listen on whatever address the machine's name has.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        limit = datetime.timedelta(seconds=patience)
        named = dist.PrefixStore("weights", store)
        dist.init_process_group(backend, store=named, rank=rank, world_size=world, timeout=limit)
        self.mesh: DeviceMesh = init_device_mesh(device.type, (world,))
        self.device = device

    def abort(self) -> None:
        """End what is under way; `close` is still to be called."""
        if self.device.type == "cuda" and dist.is_initialized():
            engine: Any = dist.distributed_c10d._get_default_group()
            with contextlib.suppress(RuntimeError):
                engine._get_backend(self.device).abort()

    def close(self) -> None:
        """Give the default group back; without effect the second time."""
        if dist.is_initialized():
            dist.destroy_process_group()


def shard_block(
    config: ModelConfig, weights: Mapping[str, Tensor], group: ShardGroup
) -> ShardedBlock:
    """A block with these weights, of which this rank keeps its share on its device.

    weights: by the block's own names; they are read once, and not changed.
    """
    image = config.model_type == "i2v"
    make = Factory(nn, None, "meta")
    block = Block(config.dim, config.ffn_dim, config.num_heads, config.eps, image, make)
    named = {name: part.to(group.device) for name, part in weights.items()}
    block.load_state_dict(named, assign=True)
    block.requires_grad_(False)
    fully_shard(block, mesh=group.mesh, reshard_after_forward=True)
    return ShardedBlock(block)


class ShardedBlock:
    """A block that all ranks have to call at once, or give way to."""

    def __init__(self, block: Any) -> None:
        self.block = block

    def __call__(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        self._gather()
        out: Tensor = self.block(x, inputs)  # which gives the gathered weights up
        return out

    def give_way(self) -> None:
        """Take part in gathering the weights, where this rank has nothing to compute."""
        self._gather()
        self.block.reshard()

    def _gather(self) -> None:
        # FSDP2 keeps what it makes, and PyTorch's inference mode would mark it for that mode alone.
        with torch.inference_mode(False), torch.no_grad():
            self.block.unshard()
