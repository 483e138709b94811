"""The UMT5-XXL text encoder of SkyReels-V2, and the names its checkpoints use.

Architecture: T5 v1.1 encoder (Raffel et al., arXiv:1910.10683) with a relative position bias of
its own in every layer (UMT5: Chung et al., arXiv:2304.09151).
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .gguf_file import require_architecture
from .key_maps import renamed
from .layers import embedding
from .quantized import QuantizedWeight, Weights, gather_scaled
from .recognise import looks_like

COMPUTE_DTYPES = (torch.float32, torch.bfloat16)

_BLOCK_NAMES = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
# Names in GGUF files (llama.cpp's, of its architecture "t5encoder").
_GGUF_BLOCK_NAMES = {
    "attn_norm": "norm1",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_o": "attn.o",
    "attn_rel_b": "pos_embedding.embedding",
    "ffn_norm": "norm2",
    "ffn_gate": "ffn.gate.0",
    "ffn_up": "ffn.fc1",
    "ffn_down": "ffn.fc2",
}
_TOP_NAMES = {
    "token_embd.weight": "token_embedding.weight",
    "enc.output_norm.weight": "norm.weight",
    "shared.weight": "token_embedding.weight",
    "encoder.embed_tokens.weight": "token_embedding.weight",
    "encoder.final_layer_norm.weight": "norm.weight",
}
_NOT_OF_THE_ENCODER = re.compile(r"spiece_model$|decoder\.|lm_head\.|model_type\.")
_EMBEDDINGS = tuple(key for key, name in _TOP_NAMES.items() if "embed" in name)
_EMBEDDINGS += ("token_embedding.weight",)
_ARCHITECTURES = ("t5encoder", "t5")


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of the encoder; UMT5-XXL is (256384, 4096, 4096, 10240, 64, 24)."""

    vocab: int
    dim: int
    dim_attn: int
    dim_ffn: int
    num_heads: int
    num_layers: int
    num_buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim_attn % self.num_heads:
            nearest = max(1, round(self.dim_attn / self.num_heads)) * self.num_heads
            raise ValueError(
                f"dim_attn: got {self.dim_attn}, must be a multiple of num_heads "
                f"({self.num_heads}); nearest: {nearest}"
            )

    @classmethod
    def from_state_dict(cls, state_dict: Weights) -> "UMT5Config":
        """Read the sizes from the shapes of a checkpoint with the original names.

        `max_distance` and `eps` leave no trace in a file and keep their published values.
        Raises ValueError, saying what the file looks like, when it is not a UMT5 encoder.
        """
        _refuse_other_files(state_dict)
        _refuse_incomplete(state_dict)
        vocab, dim = state_dict["token_embedding.weight"].shape
        num_buckets, num_heads = state_dict["blocks.0.pos_embedding.embedding.weight"].shape
        return cls(
            vocab=vocab,
            dim=dim,
            dim_attn=state_dict["blocks.0.attn.q.weight"].shape[0],
            dim_ffn=state_dict["blocks.0.ffn.fc1.weight"].shape[0],
            num_heads=num_heads,
            num_layers=_count_blocks(state_dict),
            num_buckets=num_buckets,
        )


def hf_to_original(key: str) -> str | None:
    """The original `.pth` name of a key in transformers' (= ComfyUI's) or GGUF's naming, or None.

    `shared.weight` and the tied `encoder.embed_tokens.weight` have the same original name.
    """
    if key in _TOP_NAMES:
        return _TOP_NAMES[key]
    for pattern, names in (
        (r"encoder\.block\.(\d+)\.(.+)\.weight", _BLOCK_NAMES),
        (r"enc\.blk\.(\d+)\.(.+)\.weight", _GGUF_BLOCK_NAMES),
    ):
        match = re.fullmatch(pattern, key)
        if match and match[2] in names:
            return f"blocks.{match[1]}.{names[match[2]]}.weight"
    return None


def to_original_names(
    state_dict: Weights, metadata: Mapping[str, str] | None = None
) -> dict[str, Tensor | QuantizedWeight]:
    """The encoder's weights under their original names, from every published layout.

    Weights with scales are put together with them (`quantized.gather_scaled`). Left out: the
    embedded tokenizer `spiece_model` (give it to `tokenizer.Tokenizer`), a decoder and its head,
    repackagers' `model_type.*` markers. Any other unknown key stays under its own name, so that a
    strict load reports it. Raises ValueError for another kind of model.
    """
    require_architecture(metadata or {}, *_ARCHITECTURES)
    _refuse_other_files(state_dict)
    own = {k: v for k, v in state_dict.items() if not _NOT_OF_THE_ENCODER.match(k)}
    if "shared.weight" in own:
        own.pop("encoder.embed_tokens.weight", None)  # the same, tied
    weights = gather_scaled(own, metadata or {})
    return renamed(weights, lambda key: hf_to_original(key) or key)


def _refuse_other_files(keys: Collection[str]) -> None:
    """Raise ValueError if these are the keys of another kind of model."""
    if not any(name in keys for name in _EMBEDDINGS):
        raise ValueError(
            f"text encoder: the file looks like {looks_like(keys)}; a UMT5 encoder is needed, such "
            "as models_t5_umt5-xxl-enc-bf16.pth"
        )


def _count_blocks(keys: Iterable[str]) -> int:
    matches = (re.match(r"blocks\.(\d+)\.", key) for key in keys)
    return max((int(match[1]) + 1 for match in matches if match), default=0)


def _refuse_incomplete(keys: Weights) -> None:
    """Raise ValueError unless every tensor of a UMT5 encoder is there under its original name."""
    if any(hf_to_original(key) for key in keys):
        raise ValueError(
            "text encoder: the file has transformers' key names, original names are needed here; "
            "pass it through to_original_names first"
        )
    needed = {"token_embedding.weight", "norm.weight"}
    # No more blocks than keys, whatever number one of them may name.
    for index in range(max(1, min(_count_blocks(keys), len(keys)))):
        needed |= {f"blocks.{index}.{name}.weight" for name in _BLOCK_NAMES.values()}
    missing = sorted(needed - keys.keys())
    if not missing:
        return
    biases = [key for key in missing if "pos_embedding" in key]
    if biases == missing and "blocks.0.pos_embedding.embedding.weight" in keys:
        raise ValueError(
            "text encoder: the file looks like plain T5 (a position bias in its first layer only), "
            "UMT5 has one in every layer; use a umt5-xxl file"
        )
    raise ValueError(
        f"text encoder: {len(missing)} of {len(needed)} tensors of a UMT5 encoder are missing, "
        f"the first is '{missing[0]}'; the file has {len(keys)} keys: {sorted(keys)[:3]}"
    )


def relative_position_bucket(
    relative_position: Tensor, num_buckets: int = 32, max_distance: int = 128
) -> Tensor:
    """Bucket of each signed distance (key − query): exact when near, logarithmic when far.

    Half of the buckets are for keys behind the query; distances from `max_distance` on share the
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


def _not_narrow(factory: dict[str, Any]) -> dict[str, Any]:
    """In 8 bits only the linear layers: files with them keep the rest in bf16, too."""
    dtype = factory["dtype"]
    narrow = dtype is not None and dtype.itemsize == 1
    return {**factory, "dtype": torch.bfloat16} if narrow else factory


class RelativePositionBias(nn.Module):
    """One learned number per bucket and head, added to the attention logits."""

    def __init__(self, config: UMT5Config, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.embedding = embedding(operations, config.num_buckets, config.num_heads, **factory)

    def forward(self, buckets: Tensor, dtype: torch.dtype) -> Tensor:
        bias = self.embedding(buckets).to(dtype)  # (L, L, heads)
        return bias.permute(2, 0, 1)[None]  # (1, heads, L, L)


class Attention(nn.Module):
    """Self-attention whose logits are not scaled: T5 folds the scale into its initialisation."""

    def __init__(self, config: UMT5Config, operations: Any, **factory: Any) -> None:
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

    def __init__(self, config: UMT5Config, operations: Any, **factory: Any) -> None:
        super().__init__()
        gate = operations.Linear(config.dim, config.dim_ffn, bias=False, **factory)
        self.gate = nn.Sequential(gate, nn.GELU(approximate="tanh"))
        self.fc1 = operations.Linear(config.dim, config.dim_ffn, bias=False, **factory)
        self.fc2 = operations.Linear(config.dim_ffn, config.dim, bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.gate(x) * self.fc1(x))


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with a residual connection."""

    def __init__(self, config: UMT5Config, operations: Any, **factory: Any) -> None:
        super().__init__()
        fine = _not_narrow(factory)
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
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        factory: dict[str, Any] = {"dtype": dtype, "device": device}
        fine = _not_narrow(factory)
        self.token_embedding = embedding(operations, config.vocab, config.dim, **fine)
        self.blocks = nn.ModuleList(
            Block(config, operations, **factory) for _ in range(config.num_layers)
        )
        self.norm = T5LayerNorm(config.dim, config.eps, **fine)

    def forward(self, ids: Tensor, mask: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Encode ids (B, L) int64 with mask (B, L), true on text: (B, L, dim) in `dtype`.

        Rows behind each text are exactly zero. Padding is not computed: as no text sees it, only
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
            raise ValueError(
                f"dtype: got {dtype}, the text encoder computes in torch.float32 or "
                "torch.bfloat16 (T5 overflows float16); nearest: torch.float32"
            )
        for name, layer in self.named_modules():
            if type(layer) is nn.Linear and layer.weight.dtype != dtype:
                raise ValueError(
                    f"dtype: got {dtype}, but {name} stores {layer.weight.dtype} and torch.nn "
                    f"layers do not cast; call encoder.to({dtype}) first, or build the encoder "
                    "from operations that cast"
                )
        return dtype


def _check_text(ids: Tensor, mask: Tensor, vocab: int) -> list[int]:
    """The length of each text; ValueError unless each is a run of known ids, then padding."""
    if ids.ndim != 2 or ids.numel() == 0 or mask.shape != ids.shape:
        raise ValueError(
            f"ids, mask: got shapes {tuple(ids.shape)} and {tuple(mask.shape)}, both must be the "
            "same (batch, length), neither of them 0"
        )
    lengths = mask.bool().sum(dim=1)  # (B,)
    runs = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    if not torch.equal(runs, mask.bool()) or int(lengths.min()) == 0:
        raise ValueError(
            f"mask: got {lengths.tolist()} tokens a row, each row must be true on one run of at "
            "least 1 token from position 0 (the end token counts), then false"
        )
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocab:
        raise ValueError(
            f"ids: got {lowest}...{highest}, this encoder's vocabulary is 0...{vocab - 1}; "
            "the tokenizer belongs to another model"
        )
    return lengths.tolist()
