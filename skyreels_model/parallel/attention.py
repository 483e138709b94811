"""Self-attention over tokens that lie with several ranks.

Ulysses: before it, each rank gives its tokens' heads away and gets some heads of all tokens; after
it, back. Any attention serves, and the numbers are those of one process. Ring: each rank keeps its
queries, and keys and values go round; the parts are merged by the logarithm of their sums.

Sources: DeepSpeed-Ulysses (arXiv 2309.14509), Ring Attention (arXiv 2310.01889).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..attention.attend import Attend
from .groups import Group, Mesh
from .ring_attention import AttendPart, choose_attention
from .shards import Shards

NARROW = (torch.float16, torch.bfloat16)
SCORE_BYTES = 256 * 2**20


def share_attention(attend: Attend, mesh: Mesh, shards: Shards, causal_frames: int = 0) -> Attend:
    """Attention of this rank's tokens, (B, frames * width, D), to those of all its prompt's ranks.

    attend: what one process would call with all tokens, its causal blocks included. A ring cannot
    use it, for it does not return its sums; it asks PyTorch's kernels, with `causal_frames` frames
    a block, 0 for full attention.
    """
    group, ring = mesh.heads, mesh.ring
    if ring.size > 1:
        attend = attend_in_ring(
            ring, shards, group.size, causal_frames, functools.partial(find_attention, mesh)
        )
    filled = shards.filled(ring.rank * group.size, group.size)
    if mesh.degrees.sequence == 1:
        return attend

    def attend_shared(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        q, k, v = (give_heads(t, group, shards, filled) for t in (q, k, v))
        return take_heads(attend(q, k, v, heads // group.size), group, shards)

    return attend_shared


def give_heads(x: Tensor, group: Group, shards: Shards, filled: int) -> Tensor:
    """All heads of x (B, frames * width, D) -> some, of the group's tokens, in their order.

    (B, frames * filled, D / size), without what was filled up.
    """
    split = x.unflatten(2, (group.size, -1)).unflatten(1, (shards.frames, -1))
    # (B, frames, width, size, D / size) -> (size, B, frames, width, D / size)
    got = group.all_to_all(split.permute(3, 0, 1, 2, 4).contiguous())
    placed = got.permute(1, 2, 0, 3, 4).flatten(2, 3)  # (B, frames, size * width, D / size)
    return placed[:, :, :filled].flatten(1, 2)


def take_heads(x: Tensor, group: Group, shards: Shards) -> Tensor:
    """The reverse of `give_heads`, with zeros where places are filled up."""
    placed = x.unflatten(1, (shards.frames, -1))
    absent = group.size * shards.width - placed.shape[2]
    placed = torch.nn.functional.pad(placed, (0, 0, 0, absent)).unflatten(2, (group.size, -1))
    # (B, frames, size, width, D / size) -> (size, B, frames, width, D / size)
    got = group.all_to_all(placed.permute(2, 0, 1, 3, 4).contiguous())
    return got.permute(1, 2, 3, 0, 4).flatten(3).flatten(1, 2)


def attend_in_ring(
    group: Group,
    shards: Shards,
    parts: int,
    causal_frames: int = 0,
    attend_part: Callable[[torch.dtype], AttendPart] | None = None,
) -> Attend:
    """Attention of this rank's queries to keys and values that go round the group.

    parts: of each frame that one rank has. attend_part: whose computes a part, for a number
    format; by default PyTorch's.
    """
    frames = shards.frames

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        batch, _, dim = q.shape
        held = torch.stack([k, v])  # (2, B, frames * filled, D)
        total = Sums(q, heads, attend_part(q.dtype) if attend_part else attend_with_sums)
        for step in range(group.size):
            left = (group.rank - step - 1) % group.size
            coming: Callable[[], Tensor] | None = None
            if step < group.size - 1:
                tokens = frames * shards.filled(left * parts, parts)
                coming = group.begin_shift(held, (2, batch, tokens, dim))
            for queries, keys in see(frames, causal_frames, q.shape[1], held.shape[2]):
                total.add(queries, held[0][:, keys], held[1][:, keys])
            if coming:
                held = coming()
        return total.finish()

    return attend


def find_attention(mesh: Mesh, dtype: torch.dtype) -> AttendPart:
    """How parts of a mesh's ring are computed, chosen once a run for each number format."""
    known = mesh.ring_attention
    if dtype not in known:
        on_card = mesh.device.type == "cuda" and dtype in NARROW
        ours = attend_with_sums
        known[dtype] = choose_attention(ours, mesh.device, dtype) if on_card else ours
    found: AttendPart = known[dtype]
    return found


def see(frames: int, causal_frames: int, queries: int, keys: int) -> list[tuple[slice, slice]]:
    """Which queries see which keys, where both are the tokens of so many frames.

    Every pair of slices that is not empty.
    """
    if not queries or not keys:
        return []
    if not causal_frames:
        return [(slice(0, queries), slice(0, keys))]
    ends = range(causal_frames, frames + 1, causal_frames)
    q, k = queries // frames, keys // frames
    return [(slice((end - causal_frames) * q, end * q), slice(0, end * k)) for end in ends]


class Sums:
    """Attention of q (B, L, heads * d) to keys that come in parts, float32 until it is finished."""

    def __init__(self, q: Tensor, heads: int, attend_part: AttendPart) -> None:
        self.attend_part = attend_part
        self.q = split_heads(q, heads)  # (B, heads, L, d)
        self.out = torch.zeros_like(self.q, dtype=torch.float32)
        self.log = torch.full_like(self.out[..., 0], -math.inf)  # (B, heads, L)

    def add(self, queries: slice, k: Tensor, v: Tensor) -> None:
        """Let these queries see keys and values (B, n, heads * d), which are not empty."""
        heads = self.q.shape[1]
        k, v = split_heads(k, heads), split_heads(v, heads)
        out, log = self.attend_part(self.q[:, :, queries], k, v)
        before = self.log[:, :, queries]
        after = torch.logaddexp(before, log)
        kept, added = ((part - after).exp()[..., None] for part in (before, log))
        self.out[:, :, queries] = self.out[:, :, queries] * kept + out.float() * added
        self.log[:, :, queries] = after

    def finish(self) -> Tensor:
        """(B, L, heads * d) in the dtype of the queries."""
        return self.out.to(self.q.dtype).transpose(1, 2).flatten(2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads * d) -> (B, heads, L, d)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def attend_with_sums(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention (B, heads, L, d), and the logarithm of each query's sum (B, heads, L), float32."""
    made, aten = None, torch.ops.aten
    if q.device.type == "cpu":
        made = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    elif q.device.type == "cuda" and q.dtype in NARROW:
        made = aten._scaled_dot_product_flash_attention(q, k, v)
    elif q.device.type == "cuda" and q.dtype == torch.float32:
        made = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    if made is None:
        return attend_plainly(q, k, v)
    return made[0], made[1][:, :, : q.shape[2]].float()  # one kernel fills its sums up


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """As `attend_with_sums`, by plain products, a few queries at a time."""
    outs, logs = [], []
    batch, heads, rows, width = q.shape
    pieces = max(1, min(rows, 4 * batch * heads * rows * k.shape[2] // SCORE_BYTES))
    for part in q.tensor_split(pieces, dim=2):
        scores = (part @ k.transpose(2, 3)).float() / math.sqrt(width)
        logs.append(scores.logsumexp(dim=3))
        outs.append(scores.sub_(logs[-1][..., None]).exp_().to(v.dtype) @ v)
    return torch.cat(outs, dim=2), torch.cat(logs, dim=2)
