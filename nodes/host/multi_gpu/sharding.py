"""A host's model whose blocks lie in parts with all ranks, and not in its own memory."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ....skyreels_model.model.layers import BlockInputs
from ....skyreels_model.parallel.groups import Mesh
from ....skyreels_model.parallel.sharded import ShardedBlock, shard_block
from ..sockets.model import load_patcher

BLOCKS = "diffusion_model.blocks"


class StandIn(nn.Module):
    """In a block's place. To the host it has no weights that need room.

    Whoever asks for them by name, as LoRAs do, sees those of the file.
    """

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.__dict__["whole"] = whole  # not a part of this module
        self.sharded: ShardedBlock | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["whole"], name)

    def state_dict(self, *_args: Any, destination: Any = None, prefix: str = "", **how: Any) -> Any:
        return self.whole.state_dict(destination=destination, prefix=prefix, **how)

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        assert self.sharded is not None, "the weights have not been brought to the GPUs"
        return self.sharded(x, inputs)

    def give_way(self) -> None:
        assert self.sharded is not None
        self.sharded.give_way()


def require_plain(patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Raise ValueError for weights that FSDP2 cannot hold in parts."""
    model = patcher.model
    if model.manual_cast_dtype is not None or model.model_config.custom_operations is not None:
        raise ValueError(
            "weights is sharded, and model holds them in another format than it computes in (fp8, "
            "GGUF or similar); load a bf16 file with weight_dtype default or bf16, or set weights "
            "to whole"
        )


def empty_blocks(
    patcher: comfy.model_patcher.ModelPatcher,
) -> comfy.model_patcher.ModelPatcher:
    """A clone with a model of its own from the same file, whose blocks are `StandIn`s."""
    model = load_patcher(*patcher.cached_patcher_init[1]).model
    put_stand_ins(model)
    # As the host's own copies for other GPUs: nothing of the first model is kept to be put back.
    emptied = patcher.clone(model_override=(model, ({}, {}, {}, set())))
    emptied.hook_backup = {}
    # The host would count what can be asked for by name.
    emptied.size = sum(weight.nbytes for weight in model.parameters())
    if hasattr(emptied, "register_load_device"):
        emptied.register_load_device(emptied.load_device)
    return emptied


def put_stand_ins(model: Any) -> None:
    blocks = model.diffusion_model.blocks
    for index, block in enumerate(blocks):
        blocks[index] = StandIn(block)


def count_bytes(model: Any) -> tuple[int, int]:
    """Of all blocks, and of one."""
    sizes = [
        sum(weight.nbytes for weight in block.state_dict().values())
        for block in model.diffusion_model.blocks
    ]
    return sum(sizes), max(sizes)


@torch.inference_mode(False)
@torch.no_grad()
def keep_share(patcher: comfy.model_patcher.ModelPatcher, mesh: Mesh) -> None:
    """Bring this rank's share of the blocks, with the patcher's LoRAs, to its device."""
    group = mesh.shards
    assert group is not None
    model = patcher.model
    for stand_in in model.diffusion_model.blocks:
        stand_in.sharded = None
    total, one = count_bytes(model)
    share = total // mesh.degrees.world + 2 * one
    comfy.model_management.free_memory(share, group.device)
    for index, stand_in in enumerate(model.diffusion_model.blocks):
        prefix = f"{BLOCKS}.{index}."
        weights = {
            name: patcher.patch_weight_to_device(
                prefix + name, device_to=group.device, return_weight=True
            )
            for name in stand_in.state_dict()
        }
        config = model.diffusion_model.config
        stand_in.sharded = shard_block(config, weights, group)
