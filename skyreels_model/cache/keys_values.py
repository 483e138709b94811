"""Keys and values of frames that rest, kept layer by layer, and a forward of the other frames.

What a frame is to the others in a layer are its keys and values. Where they are kept from an
earlier model call, the frame is seen by the others and costs no more than that. How well this does
depends on the attention. Where all frames see each other, a frame that is done changes a little as
the others do (`kept_frames` says when it is computed again). Where a block of frames sees itself
and those before it alone, it is for all later ones a constant, and the film is that of the dense
mask (`causal_block_size`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from ..attention import Attend
from ..model.layers import BlockInputs
from ..model.network import RunBlock, run_directly
from ..model.positions import AT_INDICES, Positions, apply_rope, rope_table

NARROW = torch.float8_e4m3fn
# call(x, timestep, positions, run_block) -> the model's velocity; what else it takes is in there.
ModelCall = Callable[..., Tensor]


@dataclass(frozen=True)
class Storage:
    """How keys and values are kept.

    narrow: in 8 bits, with a scale for each token. in_ram: in RAM, pinned where a GPU reads it.
    """

    narrow: bool = False
    in_ram: bool = False

    @property
    def itemsize(self) -> int:
        """Bytes a number, of one that is computed in 16 bits."""
        return 1 if self.narrow else 2

    def keep(self, tensor: Tensor) -> Stored:
        """A copy of (B, L, D)."""
        scale = None
        if self.narrow:
            most = tensor.abs().amax(dim=2, keepdim=True).float()
            scale = most.clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(NARROW).max
            tensor = (tensor / scale).to(NARROW)
        if self.in_ram:
            return Stored(_to_ram(tensor), None if scale is None else _to_ram(scale))
        return Stored(tensor if self.narrow else tensor.clone(), scale)


def _to_ram(tensor: Tensor) -> Tensor:
    pinned = tensor.device.type == "cuda"
    return torch.empty_like(tensor, device="cpu", pin_memory=pinned).copy_(tensor)


@dataclass(frozen=True)
class Stored:
    """(B, L, D) as it is kept; scale (B, L, 1) float32."""

    data: Tensor
    scale: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def read(self, like: Tensor) -> Tensor:
        """(B, L, D) in the dtype of `like` and where it is."""
        data = self.data.to(like.device, non_blocking=True)
        if self.scale is None:
            return data.to(like.dtype)
        scale = self.scale.to(like.device, non_blocking=True)
        return (data.float() * scale).to(like.dtype)


@dataclass(frozen=True)
class KeptFrame:
    """A frame's keys and values in every layer.

    origin: the place to which its keys are turned.
    """

    origin: int
    layers: list[tuple[Stored, Stored]]


@dataclass(frozen=True)
class RowFrames:
    """What a model call does with the frames that it is shown, by their places.

    compute: those whose velocity is computed. keep: those whose keys and values are known after
    it. block: how many frames a block has that sees itself and those before it; 0: each frame sees
    all. Whole blocks are computed, after those that are kept.
    """

    compute: tuple[int, ...]
    keep: tuple[int, ...] = ()
    block: int = 0


@dataclass
class KeysValues:
    """What the layers know of frames of a window, for one prompt; frames: by place."""

    storage: Storage = field(default_factory=Storage)
    frames: dict[int, KeptFrame] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        layers = [layer for frame in self.frames.values() for layer in frame.layers]
        return sum(stored.nbytes for layer in layers for stored in layer)

    def slide(self, by: int, sinks: int = 0) -> None:
        """The view has left so many frames. The first `sinks` stay, and the next ones go for them.

        So no frame is ever farther along than the view is long, however long the film.
        """
        first = {place: kept for place, kept in self.frames.items() if place < sinks}
        self.frames = first | {
            place - by: kept for place, kept in self.frames.items() if place - by >= sinks
        }


@dataclass
class RowForward:
    """A forward of the frames at work, for a batch of prompts.

    stores: of each prompt, which share the batch equally, in their order.
    """

    stores: Sequence[KeysValues]
    row: RowFrames
    positions: Positions = AT_INDICES
    found: list[dict[int, list[tuple[Stored, Stored]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        new = set(self.row.compute) & set(self.row.keep)
        self.found = [{place: [] for place in new} for _ in self.stores]

    @property
    def seen(self) -> list[int]:
        """The frames that are seen by what is kept of them."""
        row, known = self.row, set.intersection(*(set(one.frames) for one in self.stores))
        known -= set(row.compute)
        return sorted(place for place in known if not row.block or place < row.compute[0])

    def run(
        self, call: ModelCall, x: Tensor, timestep: Tensor, run_block: RunBlock = run_directly
    ) -> Tensor:
        """The velocity (B, C, F, H, W) of the frames that are computed; 0 of the others.

        x (B, C, F, H, W) and timestep (B, F): of all frames in view. call: the model, which is
        given those that are computed, where they lie, and how its blocks are run. Nothing is kept
        of a call that fails.
        """
        row, seen = self.row, self.seen

        def run(index: int, block: nn.Module, stream: Tensor, inputs: BlockInputs) -> Tensor:
            def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
                self._keep(k, v)
                k, v = self._join(seen, index, k, v, heads)
                return attend_blocks(inputs.attend_self, q, k, v, heads, row)

            return run_block(index, block, stream, replace(inputs, attend_self=attend))

        places = torch.tensor(row.compute, device=x.device)
        part = call(
            x=x.index_select(2, places),
            timestep=timestep.index_select(1, places),
            positions=replace(self.positions, frames=row.compute),
            run_block=run,
        )
        for store, found in zip(self.stores, self.found, strict=True):
            kept = {place: store.frames[place] for place in seen if place in row.keep}
            store.frames = kept | {
                place: KeptFrame(place, layers) for place, layers in found.items()
            }
        shape = list(part.shape)
        shape[2] = x.shape[2]
        return part.new_zeros(shape).index_copy_(2, places, part)

    def _keep(self, k: Tensor, v: Tensor) -> None:
        """Put what a layer knows of the frames that are to be kept among what is found of them."""
        compute, prompts = self.row.compute, len(self.stores)
        for place, *pair in zip(
            compute, k.chunk(len(compute), 1), v.chunk(len(compute), 1), strict=True
        ):
            if place not in self.row.keep:
                continue
            parts = zip(self.stores, self.found, *(t.chunk(prompts) for t in pair), strict=True)
            for store, found, key, value in parts:
                found[place].append((store.storage.keep(key), store.storage.keep(value)))

    def _join(
        self, seen: list[int], index: int, k: Tensor, v: Tensor, heads: int
    ) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of the frames that are seen, and after them its own."""
        size, prompts = k.shape[1] // len(self.row.compute), len(self.stores)
        before = len(seen) * size
        shape = (k.shape[0], before + k.shape[1], k.shape[2])
        keys, values = k.new_empty(shape), v.new_empty(shape)
        keys[:, before:], values[:, before:] = k, v
        parts = zip(self.stores, keys.chunk(prompts), values.chunk(prompts), strict=True)
        for store, own_keys, own_values in parts:
            for number, place in enumerate(seen):
                frame, at = store.frames[place], slice(number * size, (number + 1) * size)
                key, value = frame.layers[index]
                by = place - frame.origin
                own_keys[:, at] = turn_keys(key.read(k), heads, by, self.positions)
                own_values[:, at] = value.read(v)
        return keys, values


def attend_blocks(
    attend: Attend, q: Tensor, k: Tensor, v: Tensor, heads: int, row: RowFrames
) -> Tensor:
    """Attention of the frames that are computed, whose keys and values are the last of k and v."""
    if not row.block:
        return attend(q, k, v, heads)
    size, parts, start = q.shape[1] // len(row.compute), [], 0
    before = k.shape[1] - q.shape[1]
    for _, block in groupby(row.compute, lambda place: place // row.block):
        stop = start + len(list(block)) * size
        seen = before + stop
        parts.append(attend(q[:, start:stop], k[:, :seen], v[:, :seen], heads))
        start = stop
    return torch.cat(parts, dim=1)


def turn_keys(keys: Tensor, heads: int, by: int, positions: Positions) -> Tensor:
    """Keys (B, L, D) as they are so many frames farther along."""
    if not by:
        return keys
    split = keys.unflatten(2, (heads, -1))
    along = Positions((positions.scale[0], 1.0, 1.0), frames=(by,))
    return apply_rope(split, rope_table((1, 1, 1), split.shape[3], keys.device, along)).flatten(2)


def frame_bytes(tokens: int, dim: int, layers: int, itemsize: int) -> int:
    """Of a frame of so many tokens, for one prompt, kept at `itemsize` bytes a number."""
    scale = 4 if itemsize == 1 else 0
    return 2 * layers * tokens * (dim * itemsize + scale)
