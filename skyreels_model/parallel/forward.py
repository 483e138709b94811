"""One forward of the transformer that several ranks share: all give and get the same.

Nothing of the model changes. `SharedBlocks` is called for each block: it cuts the stream before the
first one and hands each block inputs that fit its part. A hook on the head joins what the ranks
have made. Embeddings, which are cheap, every rank computes in whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..attention import Attend, sdpa
from ..model.layers import BlockInputs
from ..model.network import RunBlock, SkyReelsModel, run_directly
from .attention import share_attention
from .groups import Mesh
from .shards import Shards


class SharedBlocks:
    """Calls the blocks of one forward with this rank's tokens: its `run_block`.

    grid: the tokens along frames, height and width. blocks: how many there are. run: calls each.
    causal_frames: of block-causal attention, 0 for full. whole_stream: the stream is joined after
    the last block, for a cache that wants it, instead of after the head, which sends far less.
    begin: called before the first block, where there is one to run: a cache may leave them out.
    """

    def __init__(
        self,
        mesh: Mesh,
        batch: int,
        grid: Sequence[int],
        blocks: int,
        run: RunBlock = run_directly,
        causal_frames: int = 0,
        whole_stream: bool = False,
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.mesh, self.blocks, self.run, self.begin = mesh, blocks, run, begin
        self.causal_frames, self.whole_stream = causal_frames, whole_stream
        degrees = mesh.degrees
        self.shards = Shards(
            batch, grid[0], grid[1] * grid[2], degrees.sequence, min(degrees.prompts, batch)
        )
        self.samples = self.shards.samples(mesh.prompt)
        self.given: BlockInputs | None = None

    @property
    def idle(self) -> bool:
        """Whether there are fewer prompts than parts of them, and none is this rank's."""
        return self.samples.start == self.samples.stop

    def __call__(self, index: int, block: nn.Module, x: Tensor, inputs: BlockInputs) -> Tensor:
        if index == 0:
            self.begin()
            self.given = self.cut_inputs(inputs)
            x = self.shards.cut(x[self.samples], self.mesh.chunk)
        assert self.given is not None
        give_way: Callable[[], None] | None = getattr(block, "give_way", None)
        if not self.idle:
            x = self.run(index, block, x, self.given)
        elif give_way:
            give_way()  # its weights are gathered by all ranks
        if index == self.blocks - 1 and self.whole_stream:
            return self.join(x)
        return x

    def cut_inputs(self, inputs: BlockInputs) -> BlockInputs:
        """What a block is given, for this rank's samples and tokens."""
        own = self.samples
        return dataclasses.replace(
            inputs,
            modulation=inputs.modulation[own],
            context=inputs.context[own],
            time=None if inputs.time is None else inputs.time[own],
            rope=self.shards.cut(inputs.rope, self.mesh.chunk),
            attend_self=share_attention(
                inputs.attend_self, self.mesh, self.shards, self.causal_frames
            ),
        )

    def join(self, x: Tensor) -> Tensor:
        """This rank's part (n, frames * width, D) -> all ranks' parts, (batch, L, D)."""
        shards = self.shards
        parts = self.mesh.world.all_gather(shards.fill_batch(x))
        return shards.join(parts[: shards.groups * shards.parts])

    @contextlib.contextmanager
    def share_head(self, head: nn.Module) -> Iterator[None]:
        """Inside, the model's head sees this rank's tokens, and what it makes is joined."""
        if self.whole_stream:
            yield
            return

        def fit_time(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x, time = args
            return x, time[self.samples]

        def join(_head: nn.Module, _args: Any, out: Tensor) -> Tensor:
            return self.join(out)

        hooks = head.register_forward_pre_hook(fit_time), head.register_forward_hook(join)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def share_forward(
    model: SkyReelsModel,
    mesh: Mesh,
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    clip_fea: Tensor | None = None,
    fps: Tensor | None = None,
    causal_block_size: int | None = None,
    attend: Attend = sdpa,
) -> Tensor:
    """`model(x, timestep, context, …)`, on every rank of the mesh at once with the same inputs.

    Arguments and result are those of `SkyReelsModel.forward`.
    """
    sides = zip(x.shape[2:], model.config.patch_size, strict=True)
    grid = [size // side for size, side in sides]
    causal = causal_block_size or 0
    blocks = SharedBlocks(mesh, x.shape[0], grid, len(model.blocks), causal_frames=causal)
    with blocks.share_head(model.head):
        out: Tensor = model(
            x, timestep, context, clip_fea, fps, causal_block_size, attend, run_block=blocks
        )
    return out
