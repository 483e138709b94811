"""A worker's side: it holds the transformer as ComfyUI's loader made it, and runs its part."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfy.model_management
from torch import Tensor

from ....skyreels_model.model.network import RunBlock
from ....skyreels_model.parallel.channel import Message
from ....skyreels_model.parallel.forward import SharedBlocks
from ....skyreels_model.parallel.groups import Mesh
from ..sockets.model import load_patcher
from ..sockets.sharing import SHARED, Call
from . import patches, sharding


class HostFollower:
    """A `Follower` with a model of the host."""

    def __init__(self) -> None:
        self.device = comfy.model_management.get_torch_device()
        self.patcher: Any = None
        self.fits: tuple[Any, ...] | None = None  # what memory was made for

    def answer(self, message: Message, tensors: dict[str, Tensor]) -> Message:
        self.fits = None
        if message["do"] == "load":
            self.patcher = None
            self.patcher = load_patcher(Path(message["path"]), *message["settings"])
            if message["sharded"]:
                sharding.put_stand_ins(self.patcher.model)
            return {"done": "load"}
        patches.read_patches(message["patches"], tensors, self.patcher)
        return {"digest": patches.identify(message["patches"], tensors)}

    def shard(self, mesh: Mesh) -> None:
        sharding.keep_share(self.patcher, mesh)

    def forward(self, mesh: Mesh, settings: Message, given: dict[str, Tensor]) -> None:
        self._make_room(given, settings["needed"])
        options = {**settings["options"], SHARED: FollowingBlocks(mesh, settings["whole_stream"])}
        call = {"clip_fea": None, "fps": None, **given}
        self.patcher.model.diffusion_model._forward(
            time_dim_concat=None, transformer_options=options, **call
        )

    def _make_room(self, given: dict[str, Tensor], needed: float) -> None:
        """Let the host load the weights beside what a forward of this size needs."""
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in given.items())
        if self.fits != shapes:
            comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)
            self.fits = shapes


class FollowingBlocks:
    """A `Sharing` in a worker, for one forward."""

    def __init__(self, mesh: Mesh, whole_stream: bool) -> None:
        self.mesh, self.whole_stream = mesh, whole_stream

    @contextlib.contextmanager
    def share(self, call: Call) -> Iterator[RunBlock]:
        blocks = SharedBlocks(
            self.mesh,
            call.given["x"].shape[0],
            call.grid,
            len(call.transformer.blocks),
            call.run,
            whole_stream=self.whole_stream,
        )
        with blocks.share_head(call.transformer.head):
            yield blocks
