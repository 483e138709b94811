"""The parts of the diffusion transformer: norms, rotary positions, attention layers, the block.

Modulation stays per frame: it is (B, T, n, D) with T = latent frames (or 1 where all frames share
a timestep) and is broadcast over a frame's tokens, never expanded to them.

The stream of tokens is float32 where products are in 16 bits: rounded after each sublayer, it would
be most of the error (`benchmarks/RESULTS.md`). Norms, modulation and sums are float32, products and
attention in the dtype of the context.

Where a block may overwrite its input, its layers write over what is theirs, and what would be
larger than the queries, keys and values of the tokens is done in pieces, so that those are the peak
(see `memory`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.attend import Attend
from ..operations import Operations, make_embedding
from .positions import Rotate, apply_rope

# Norms and rotations run in pieces of what a processor's cache holds where a norm is several
# operators, which copy what they norm; a feed-forward in pieces of hundreds of rows at least.
PIECE_BYTES, MOST_PIECES = 4 * 2**20, 8
HIDDEN_BYTES = 8 * 2**20


def piece_count(size: int) -> int:
    """In how many pieces to do what needs a few float32 copies of `size` bytes."""
    return max(1, min(MOST_PIECES, size // PIECE_BYTES))


def hidden_pieces(tokens: int, dim: int, hidden: int, itemsize: int) -> int:
    """In how many pieces to run a feed-forward of (tokens, dim) through (tokens, hidden).

    One, where hidden layer and stream are no larger than the five tensors of self-attention;
    else as few as keep them so, for a host that streams weights may move them once a piece.
    """
    if hidden <= 3 * dim:
        return 1
    wanted = -(-(hidden + dim) // (3 * dim))
    return max(1, min(wanted, tokens * hidden * itemsize // HIDDEN_BYTES))


def norms_are_fused(device: torch.device) -> bool:
    """Whether an RMS norm is one kernel there, which makes its result and nothing else."""
    return device.type == "cuda" and hasattr(torch.ops.aten, "_fused_rms_norm")


def modulate(
    x: Tensor, shift: Tensor, scale: Tensor, eps: float, dtype: torch.dtype, overwrite: bool
) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift in `dtype`. x (B, L, D); shift and scale (B, T, D).

    overwrite: make one tensor of a dtype instead of two; x itself is left as it is.
    """
    normed = nn.functional.layer_norm(x, x.shape[-1:], eps=eps)
    framed = normed.unflatten(1, (shift.shape[1], -1))  # (B, T, L / T, D)
    out = None
    if overwrite:
        # A processor would make the sum in the wider dtype first, a GPU writes the narrow at once.
        narrow = framed.dtype != dtype and framed.device.type != "cpu"
        out = torch.empty_like(framed, dtype=dtype) if narrow else framed
    shift, scale = shift[:, :, None], (1 + scale)[:, :, None]
    return torch.addcmul(shift, framed, scale, out=out).flatten(1, 2).to(dtype)


def add(x: Tensor, y: Tensor, overwrite: bool) -> Tensor:
    """x + y, in x where that may be written over."""
    return x.add_(y) if overwrite else x + y


def gated_add(x: Tensor, y: Tensor, gate: Tensor, overwrite: bool) -> Tensor:
    """x + y * gate, in x where that may be written over. x and y (B, L, D); gate (B, T, D)."""
    framed, y = (t.unflatten(1, (gate.shape[1], -1)) for t in (x, y))  # (B, T, L / T, D)
    gate = gate[:, :, None]
    return torch.addcmul(framed, y, gate, out=framed if overwrite else None).flatten(1, 2)


def count_distinct(text: Tensor) -> int:
    """How many rows of text (B, N, D) tell all: those after the last of them are equal to it.

    Found only where reading numbers waits for no device, without a gradient for each row.
    """
    rows = text.shape[1]
    if text.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return rows
    differs = (text != text[:, -1:]).any(dim=2).any(dim=0).nonzero()
    return min(rows, int(differs[-1]) + 2) if len(differs) else 1


def repeat_last(x: Tensor, rows: int) -> Tensor:
    """x (B, n, D) with its last row repeated: (B, rows, D)."""
    if x.shape[1] == rows:
        return x
    return torch.cat([x, x[:, -1:].expand(-1, rows - x.shape[1], -1)], dim=1)


class Modulation(nn.Module):
    """The learned offset of a modulation, a leaf module so that a host can patch and move it."""

    def __init__(
        self, count: int, dim: int, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, count, dim, dtype=dtype, device=device))

    def forward(self, e: Tensor) -> Tensor:
        """e (B, T, count or 1, D) float32 -> (B, T, count, D) float32."""
        return self.weight.to(e)[:, None] + e


class Factory:
    """Makes layers of one dtype on one device from a namespace of operations."""

    def __init__(
        self, operations: Operations, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        self.operations = operations
        self.settings: dict[str, Any] = {"dtype": dtype, "device": device}
        # In 8 bits only the blocks' large layers: the rest is small, and felt everywhere.
        narrow = dtype is not None and dtype.itemsize == 1
        self.fine = {**self.settings, "dtype": torch.float32} if narrow else self.settings

    def linear(self, n_in: int, n_out: int, dtype: torch.dtype | None = None) -> nn.Module:
        return self.operations.Linear(n_in, n_out, **self._with(dtype))

    def block_linear(self, n_in: int, n_out: int) -> nn.Module:
        made = getattr(self.operations, "BlockLinear", self.operations.Linear)
        return made(n_in, n_out, **self.settings)

    def fine_linear(self, n_in: int, n_out: int) -> nn.Module:
        return self.operations.Linear(n_in, n_out, **self.fine)

    def embedding(self, count: int, dim: int, dtype: torch.dtype | None = None) -> nn.Module:
        return make_embedding(self.operations, count, dim, **self._with(dtype))

    def conv3d(self, n_in: int, n_out: int, kernel: tuple[int, int, int]) -> nn.Module:
        return self.operations.Conv3d(n_in, n_out, kernel_size=kernel, stride=kernel, **self.fine)

    def layer_norm(self, dim: int, eps: float) -> nn.Module:
        return self.operations.LayerNorm(dim, eps=eps, **self.fine)

    def rms_norm(self, dim: int, eps: float) -> nn.Module:
        return self.operations.RMSNorm(dim, eps=eps, **self.fine)

    def modulation(self, count: int, dim: int) -> nn.Module:
        made = getattr(self.operations, "Modulation", Modulation)
        return made(count, dim, **self.fine)

    def _with(self, dtype: torch.dtype | None) -> dict[str, Any]:
        return self.settings if dtype is None else {**self.settings, "dtype": dtype}


@dataclass(frozen=True)
class BlockInputs:
    """What every block of a forward is given beside the stream of tokens.

    modulation: (B, T, 6, D) float32, the projected time; T is F, or 1 where frames share it.
    context: (B, image_tokens + N, D), the image's tokens first, then the text's.
    rope: (1, L, 1, head_dim / 2, 2, 2) float32, the tokens' positions as rotations.
    attend_self, attend_context: how tokens see each other, and how they see text and image.
    attend_image: how they see the image, where that is another way (a host keeps 8 bits from it).
    rotate: how queries and keys are turned by `rope`.
    may_overwrite: a block may write its result over the stream; no one needs gradients.
    distinct_rows: how many of the text's rows are computed, of which the last stands for all after
    it; None is all of them.
    time: (B, T, D) float32, the time before its projection; blocks have no use for it, hooks do.
    after_context: what is done to the stream after it has seen text and image (hooks of a host).
    """

    modulation: Tensor
    context: Tensor
    rope: Tensor
    image_tokens: int
    attend_self: Attend
    attend_context: Attend
    rotate: Rotate = apply_rope
    may_overwrite: bool = False
    distinct_rows: int | None = None
    time: Tensor | None = None
    after_context: Callable[[Tensor], Tensor] | None = None
    attend_image: Attend | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What products and attention are computed in."""
        return self.context.dtype

    @property
    def overwrite(self) -> bool:
        """Whether layers write over what is theirs; a compiler plans its memory itself."""
        return self.may_overwrite and not torch.compiler.is_compiling()


class Attention(nn.Module):
    """What both kinds of attention have: projections, and RMS norms over all heads together."""

    def __init__(self, dim: int, heads: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.heads, self.eps = heads, eps
        self.q, self.k, self.v, self.o = (make.block_linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = make.rms_norm(dim, eps), make.rms_norm(dim, eps)

    def apply_norm(
        self, x: Tensor, norm: nn.Module, given: BlockInputs, rotated: bool = False
    ) -> Tensor:
        """Norm and, if `rotated`, rotation of x (B, L, D), over x where that costs less memory."""

        def turn(part: Tensor, rope: Tensor) -> Tensor:
            if not rotated:
                return part
            heads = part.unflatten(2, (self.heads, -1))
            return given.rotate(heads, rope, given.overwrite).flatten(2)

        if not given.overwrite or norms_are_fused(x.device):
            x = norm(x)  # what was to be normed goes before its norm is turned
            return turn(x, given.rope)
        count = piece_count(x.nbytes)
        parts = zip(x.tensor_split(count, 1), given.rope.tensor_split(count, 1), strict=True)
        for part, rope in parts:
            part.copy_(turn(norm(part), rope))
        return x


class SelfAttention(Attention):
    """Full attention over a window's tokens, normed and modulated by the time."""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor, given: BlockInputs) -> Tensor:
        """x (B, L, D), not yet normed; shift and scale (B, T, D) -> (B, L, D)."""
        # Made here, since no one can free a tensor that a caller holds.
        y = modulate(x, shift, scale, self.eps, given.dtype, given.overwrite)
        q = self.apply_norm(self.q(y), self.norm_q, given, rotated=True)
        k = self.apply_norm(self.k(y), self.norm_k, given, rotated=True)
        v = self.v(y)
        del y
        out = given.attend_self(q, k, v, self.heads)
        del q, k, v
        return self.o(out)


class CrossAttention(Attention):
    """Attention to the text and, in I2V models, to the image: the two are summed before `o`."""

    def __init__(self, dim: int, heads: int, eps: float, image: bool, make: Factory) -> None:
        super().__init__(dim, heads, eps, make)
        if image:
            self.k_img, self.v_img = make.block_linear(dim, dim), make.block_linear(dim, dim)
            self.norm_k_img = make.rms_norm(dim, eps)

    def forward(self, x: Tensor, given: BlockInputs) -> Tensor:
        """x (B, L, D), normed -> (B, L, D)."""
        attend, overwrite = given.attend_context, given.overwrite
        image, text = given.context.tensor_split([given.image_tokens], dim=1)
        rows, text = text.shape[1], text[:, : given.distinct_rows]
        q = self.apply_norm(self.q(x), self.norm_q, given)
        k, v = repeat_last(self.norm_k(self.k(text)), rows), repeat_last(self.v(text), rows)
        out = attend(q, k, v, self.heads)
        del k, v
        if given.image_tokens:
            k, v = self.norm_k_img(self.k_img(image)), self.v_img(image)
            see = given.attend_image or attend
            out = add(out, see(q, k, v, self.heads), overwrite)
        del q
        return self.o(out)


class FeedForward(nn.Sequential):
    """Two linear layers around a GELU (tanh form), normed and modulated by the time."""

    def __init__(self, dim: int, hidden: int, eps: float, make: Factory) -> None:
        gelu = nn.GELU(approximate="tanh")
        super().__init__(make.block_linear(dim, hidden), gelu, make.block_linear(hidden, dim))
        self.hidden, self.eps = hidden, eps

    def forward(  # type: ignore[override]
        self, x: Tensor, shift: Tensor, scale: Tensor, given: BlockInputs
    ) -> Tensor:
        """x (B, L, D), not yet normed; shift and scale (B, T, D) -> (B, L, D)."""
        y = modulate(x, shift, scale, self.eps, given.dtype, given.overwrite)
        if not given.overwrite:
            return super().forward(y)
        tokens = y.flatten(0, 1)  # (B * L, D)
        rows, dim = tokens.shape
        count = hidden_pieces(rows, dim, self.hidden, y.itemsize)
        if count == 1:
            hidden = self[0](y)
            del y, tokens
            return self._finish(hidden)
        for part in tokens.tensor_split(count):
            part.copy_(self._finish(self[0](part)))
        return y

    def _finish(self, hidden: Tensor) -> Tensor:
        """(…, hidden), written over since it is the largest tensor there is -> (…, D)."""
        return self[2](torch.ops.aten.gelu_(hidden, approximate="tanh"))


class Block(nn.Module):
    """Self-attention, cross-attention, feed-forward; the first and last modulated by the time."""

    def __init__(
        self, dim: int, ffn_dim: int, heads: int, eps: float, image: bool, make: Factory
    ) -> None:
        super().__init__()
        self.modulation = make.modulation(6, dim)
        self.self_attn = SelfAttention(dim, heads, eps, make)
        self.norm3 = make.layer_norm(dim, eps)
        self.cross_attn = CrossAttention(dim, heads, eps, image, make)
        self.ffn = FeedForward(dim, ffn_dim, eps, make)

    def forward(self, x: Tensor, given: BlockInputs) -> Tensor:
        """x (B, L, D) -> the same in x's dtype, which is x where that may be written over."""
        # (B, T, D) each
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(given.modulation).unbind(2)
        overwrite = given.overwrite
        # What a layer returns gets no name, which would keep it through the next.
        x = gated_add(x, self.self_attn(x, shift1, scale1, given), gate1, overwrite)
        x = add(x, self.cross_attn(self.norm3(x.to(given.dtype)), given), overwrite)
        if given.after_context is not None:
            x = given.after_context(x)
        return gated_add(x, self.ffn(x, shift2, scale2, given), gate2, overwrite)


class Head(nn.Module):
    """Modulated norm and projection from tokens to patches; sees the time, never the fps."""

    def __init__(self, dim: int, patch_channels: int, eps: float, make: Factory) -> None:
        super().__init__()
        self.eps = eps
        self.modulation = make.modulation(2, dim)
        self.head = make.linear(dim, patch_channels, torch.float32)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x (B, L, D), e (B, T, D) -> (B, L, patch_channels), in e's dtype as the reference."""
        shift, scale = self.modulation(e[:, :, None]).unbind(2)  # (B, T, D)
        overwrite = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return self.head(modulate(x, shift, scale, self.eps, e.dtype, overwrite))


class ImageEmbedding(nn.Module):
    """CLIP features to tokens of the transformer's width (I2V models)."""

    def __init__(self, clip_dim: int, dim: int, make: Factory) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            make.layer_norm(clip_dim, 1e-5),
            make.fine_linear(clip_dim, clip_dim),
            nn.GELU(),
            make.fine_linear(clip_dim, dim),
            make.layer_norm(dim, 1e-5),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, 257, clip_dim) -> (B, 257, D)."""
        return self.proj(features)
