"""The UMT5-XXL text encoder of SkyReels-V2, and the names its checkpoints use.

Architecture: T5 v1.1 encoder (Raffel et al., arXiv:1910.10683) with a relative position bias of
its own in every layer (UMT5: Chung et al., arXiv:2304.09151).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..operations import Operations, make_embedding
from ..rules import refusal
from .config import COMPUTE_DTYPES, UMT5Config


def relative_position_bucket(
    relative_position: Tensor, num_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """Bucket of each signed distance (key - query): exact when near, logarithmic when far.

    Half of the buckets are for keys after the query; distances from `max_distance` on share the
    last one. Any shape, int64 in and out. Source: Raffel et al., arXiv:1910.10683, section 2.1.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = relative_position.abs()
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (relative_position > 0)


class T5LayerNorm(nn.Module):
    """RMS norm without a bias, statistics in fp32; a leaf, so that a host can move its weight."""

    def __init__(
        self,
        dim: int,
        eps: float,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return normed.to(x.dtype) * self.weight.to(x)


def _avoid_8_bits(factory: dict[str, Any]) -> dict[str, Any]:
    """In 8 bits only the linear layers: files with them keep the rest in bf16, too."""
    dtype = factory["dtype"]
    narrow = dtype is not None and dtype.itemsize == 1
    return {**factory, "dtype": torch.bfloat16} if narrow else factory


class RelativePositionBias(nn.Module):
    """One learned number per bucket and head, added to the attention logits."""

    def __init__(self, config: UMT5Config, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.embedding = make_embedding(operations, config.num_buckets, config.num_heads, **factory)

    def forward(self, buckets: Tensor, dtype: torch.dtype) -> Tensor:
        bias = self.embedding(buckets).to(dtype)  # (L, L, heads)
        # Fused kernels want a head's numbers side by side.
        return bias.permute(2, 0, 1)[None].contiguous()  # (1, heads, L, L)


class Attention(nn.Module):
    """Self-attention whose logits are not scaled: T5 folds the scale into its initialisation."""

    def __init__(self, config: UMT5Config, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.q = operations.Linear(config.dim, config.dim_attn, bias=False, **factory)
        self.k = operations.Linear(config.dim, config.dim_attn, bias=False, **factory)
        self.v = operations.Linear(config.dim, config.dim_attn, bias=False, **factory)
        self.o = operations.Linear(config.dim_attn, config.dim, bias=False, **factory)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, L, d)
            for layer in (self.q, self.k, self.v)
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(x.transpose(1, 2).flatten(2))  # (B, L, dim)


class FeedForward(nn.Module):
    """Gated GELU (tanh form): fc2(gelu(gate(x)) · fc1(x)). Shazeer, arXiv:2002.05202."""

    def __init__(self, config: UMT5Config, operations: Operations, **factory: Any) -> None:
        super().__init__()
        gate = operations.Linear(config.dim, config.dim_ffn, bias=False, **factory)
        self.gate = nn.Sequential(gate, nn.GELU(approximate="tanh"))
        self.fc1 = operations.Linear(config.dim, config.dim_ffn, bias=False, **factory)
        self.fc2 = operations.Linear(config.dim_ffn, config.dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(x) * self.fc1(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def __init__(self, config: UMT5Config, operations: Operations, **factory: Any) -> None:
        super().__init__()
        fine = _avoid_8_bits(factory)
        self.norm1 = T5LayerNorm(config.dim, config.eps, **fine)
        self.attn = Attention(config, operations, **factory)
        self.pos_embedding = RelativePositionBias(config, operations, **fine)
        self.norm2 = T5LayerNorm(config.dim, config.eps, **fine)
        self.ffn = FeedForward(config, operations, **factory)

    def forward(self, x: Tensor, buckets: Tensor, padding: Tensor | None) -> Tensor:
        bias = self.pos_embedding(buckets, x.dtype)  # (1, heads, L, L)
        if padding is not None:
            bias = bias.masked_fill(padding, torch.finfo(x.dtype).min)  # (B, heads, L, L)
        x = x + self.attn(self.norm1(x), bias)
        return x + self.ffn(self.norm2(x))


class UMT5Encoder(nn.Module):
    """UMT5 encoder with the parameter names of the original `.pth` checkpoint.

    Source: SkyworkAI/SkyReels-V2 skyreels_v2_infer/modules/t5.py; agrees with transformers'
    UMT5EncoderModel through `to_original_names`.
    """

    def __init__(
        self,
        config: UMT5Config,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        fine = _avoid_8_bits(factory)
        self.token_embedding = make_embedding(operations, config.vocab, config.dim, **fine)
        self.blocks = nn.ModuleList(
            Block(config, operations, **factory) for _ in range(config.num_layers)
        )
        self.norm = T5LayerNorm(config.dim, config.eps, **fine)

    def forward(self, ids: Tensor, mask: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Encode ids (B, L) int64 with mask (B, L), true on text: (B, L, dim) in `dtype`.

        Rows after each text are exactly zero. Padding is not computed: as no text sees it, only
        the longest text's rows are encoded, and the others' padding up to there is masked.
        `dtype` is float32 or bfloat16; None is that of the embedding's weight, or float32 where
        that one cannot compute (fp8, or float16, which T5's activations overflow). With `dtype`
        other than the weights', the layers of `operations` have to cast.
        Raises ValueError for ids, masks and dtypes outside these rules.
        """
        lengths = _check_text(ids, mask, self.config.vocab)
        dtype = self._compute_dtype(dtype)
        longest = max(lengths)
        text = mask[:, :longest].bool()  # (B, longest)
        padding = None if min(lengths) == longest else ~text[:, None, None, :]
        position = torch.arange(longest, device=ids.device)
        buckets = relative_position_bucket(
            position[None, :] - position[:, None],
            self.config.num_buckets,
            self.config.max_distance,
        )  # (query, key)
        x = self.token_embedding(ids[:, :longest]).to(dtype)  # (B, longest, dim)
        for block in self.blocks:
            x = block(x, buckets, padding)
        x = self.norm(x).masked_fill(~text[..., None], 0)
        return F.pad(x, (0, 0, 0, ids.shape[1] - longest))

    def _compute_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        if dtype is None:
            stored = self.token_embedding.weight.dtype
            dtype = stored if stored in COMPUTE_DTYPES else torch.float32
        if dtype not in COMPUTE_DTYPES:
            rule = "torch.float32 or torch.bfloat16 (T5 overflows float16)"
            raise refusal("dtype", dtype, rule, torch.float32)
        for name, layer in self.named_modules():
            if type(layer) is nn.Linear and layer.weight.dtype != dtype:
                rule = (
                    f"{dtype}, since torch.nn layers do not cast; call encoder.to({dtype}) first, "
                    f"or build the encoder from operations that cast"
                )
                raise refusal(f"the dtype of {name}", layer.weight.dtype, rule)
        return dtype


def _check_text(ids: Tensor, mask: Tensor, vocab: int) -> list[int]:
    """The length of each text; ValueError unless each is a run of known ids, then padding."""
    if ids.ndim != 2 or ids.numel() == 0 or mask.shape != ids.shape:
        shapes = tuple(ids.shape), tuple(mask.shape)
        rule = "(batch, length), 1 or more each, and the same"
        raise refusal("the shapes of ids and mask", shapes, rule)
    lengths = mask.bool().sum(dim=1)  # (B,)
    runs = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    if not torch.equal(runs, mask.bool()) or int(lengths.min()) == 0:
        rule = (
            "a run of 1 or more from position 0 in each row (the end token counts), true in it and "
            "false after it"
        )
        raise refusal("the number of tokens that mask shows", lengths.tolist(), rule)
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab:
        given = lowest if lowest < 0 else highest
        rule = f"0 to {vocab - 1}, this encoder's vocabulary (is this its tokenizer?)"
        raise refusal("a token of ids", given, rule, min(max(given, 0), vocab - 1))
    return lengths.tolist()
