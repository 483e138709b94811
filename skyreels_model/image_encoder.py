"""The CLIP image encoder of the I2V models, its preprocessing, and the names its files use.

Architecture: the image half of open-clip's XLM-Roberta-large ViT-H/14 (Radford et al.,
arXiv:2103.00020), a pre-norm vision transformer (Dosovitskiy et al., arXiv:2010.11929).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import sdpa
from .recognise import looks_like

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
# ViT-H's width per head; files do not tell the number of heads.
HEAD_DIM = 80

_PREFIX = "visual."
_TOP_NAMES = {
    "vision_model.embeddings.class_embedding": "cls_embedding",
    "vision_model.embeddings.patch_embedding.weight": "patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight": "pos_embedding",
    "vision_model.pre_layrnorm.weight": "pre_norm.weight",
    "vision_model.pre_layrnorm.bias": "pre_norm.bias",
    "vision_model.post_layernorm.weight": "post_norm.weight",
    "vision_model.post_layernorm.bias": "post_norm.bias",
    "visual_projection.weight": "head",
}
_BLOCK_NAMES = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
}
_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_PROJECTION = re.compile(r"(vision_model\.encoder\.layers\.\d+\.self_attn\.)([qkv])(_proj\..+)")
_NOT_OF_THE_ENCODER = re.compile(
    r"textual\.|log_scale$|text_model\.|text_projection\.|logit_scale$|model_type\.|.*\.position_ids$"
)
_QUANTISED = re.compile(r"scaled_fp8$|.*\.(scale_weight|scale_input|weight_scale|comfy_quant)$")
_REQUIRED = (
    "visual.cls_embedding",
    "visual.patch_embedding.weight",
    "visual.pos_embedding",
    "visual.head",
    "visual.transformer.0.mlp.0.weight",
)


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the encoder; the published ViT-H/14 is (1280, 5120, 16, 32, 1024, 14, 224)."""

    dim: int
    dim_mlp: int
    num_heads: int
    num_layers: int
    out_dim: int
    patch_size: int = 14
    image_size: int = 224
    eps: float = 1e-5

    @property
    def num_positions(self) -> int:
        """Tokens of an image: its patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @classmethod
    def from_state_dict(
        cls, state_dict: Mapping[str, Tensor], head_dim: int = HEAD_DIM
    ) -> CLIPVisionConfig:
        """Read the sizes from the shapes of a checkpoint with the original names.

        Raises ValueError, saying what the file looks like, when it is not such an encoder.
        `head_dim` is 80 in the published one.
        """
        absent = [key for key in _REQUIRED if key not in state_dict]
        if absent:
            raise ValueError(
                f"image encoder: the file looks like {looks_like(state_dict)} ({len(state_dict)} "
                f"tensors, no {absent[0]!r}); a CLIP ViT-H image encoder is needed, such as "
                f"models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth or "
                f"clip_vision_h.safetensors"
            )
        dim, _, _, patch_size = state_dict["visual.patch_embedding.weight"].shape
        if dim % head_dim:
            raise ValueError(
                f"image encoder: width {dim} is not a multiple of the head width {head_dim}; the "
                f"I2V models were trained with CLIP ViT-H, width 1280"
            )
        positions = state_dict["visual.pos_embedding"].shape[1]
        grid = math.isqrt(positions - 1)
        if grid**2 != positions - 1:
            raise ValueError(
                f"image encoder: {positions} positions are not a square of patches and a class "
                f"token; nearest: {grid**2 + 1}"
            )
        return cls(
            dim=dim,
            dim_mlp=state_dict["visual.transformer.0.mlp.0.weight"].shape[0],
            num_heads=dim // head_dim,
            num_layers=_count_blocks(state_dict),
            out_dim=state_dict["visual.head"].shape[1],
            patch_size=patch_size,
            image_size=grid * patch_size,
        )


def _count_blocks(keys: Iterable[str]) -> int:
    matches = (re.match(r"visual\.transformer\.(\d+)\.", key) for key in keys)
    return max(int(match[1]) + 1 for match in matches if match)


def hf_to_original(key: str) -> str | None:
    """The original `.pth` name of a transformers (= ComfyUI) CLIP key, None if it has none.

    The q, k and v projections have none of their own: they are parts of `attn.to_qkv`.
    """
    if key in _TOP_NAMES:
        return _PREFIX + _TOP_NAMES[key]
    match = _BLOCK.fullmatch(key)
    if match and match[2] in _BLOCK_NAMES:
        return f"{_PREFIX}transformer.{match[1]}.{_BLOCK_NAMES[match[2]]}.{match[3]}"
    return None


def to_original_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder's tensors under their original names, from either published layout.

    From transformers' layout q, k and v are joined and the projection is transposed. Left out: the
    text half, and repackagers' `model_type.*` markers. Any other unknown key stays under its own
    name, so that loading reports it.
    Raises ValueError for open_clip's own layout and for quantised files with scales.
    """
    _refuse_other_layouts(state_dict)
    bare = f"{_PREFIX}patch_embedding.weight" not in state_dict and "pos_embedding" in state_dict
    renamed: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if _NOT_OF_THE_ENCODER.match(key):
            continue
        part, original = _PROJECTION.fullmatch(key), hf_to_original(key)
        if original is not None:
            renamed[original] = _original_shape(original, value)
        elif part is None:
            renamed[_PREFIX + key if bare else key] = value
        elif part[2] == "q":
            parts = [state_dict.get(f"{part[1]}{letter}{part[3]}") for letter in "qkv"]
            layer, leaf = part[1].split(".")[3], part[3].removeprefix("_proj.")
            joined = [p for p in parts if p is not None]
            renamed[f"{_PREFIX}transformer.{layer}.attn.to_qkv.{leaf}"] = torch.cat(joined)
    return renamed


def _original_shape(name: str, value: Tensor) -> Tensor:
    """A tensor of transformers' layout in the shape that the original gives it."""
    if name == "visual.head":
        return value.T
    if name == "visual.cls_embedding":
        return value.reshape(1, 1, -1)
    if name == "visual.pos_embedding":
        return value.reshape(1, *value.shape[-2:])
    return value


def _refuse_other_layouts(keys: Iterable[str]) -> None:
    for key in keys:
        if ".resblocks." in key:
            raise ValueError(
                "image encoder: the file has open_clip's own key names, which are not read here; "
                "use ComfyUI's 'Load CLIP Vision' for it, or clip_vision_h.safetensors"
            )
        if _QUANTISED.match(key):
            raise ValueError(
                f"image encoder: the file is quantised with scales (it has {key!r}), which is not "
                f"supported; use an fp16, bf16 or fp32 file"
            )


def squash(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) of any aspect to (B, 3, size, size), as the I2V models were trained.

    Bicubic, neither cropped nor antialiased, hence not clamped: values may overshoot.
    Source: SkyworkAI/SkyReels-V2, `skyreels_v2_infer/modules/clip.py`.
    """
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)


def preprocess(images: Tensor, size: int = 224) -> Tensor:
    """What the encoder sees of images (B, 3, H, W) in 0..1: squashed, then CLIP's mean and std."""
    images = squash(images, size)  # (B, 3, size, size)
    mean, std = images.new_tensor((IMAGE_MEAN, IMAGE_STD))[:, None, :, None, None]
    return (images - mean) / std


class Attention(nn.Module):
    """Full attention over an image's tokens, q, k and v from one layer."""

    def __init__(self, config: CLIPVisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.to_qkv = operations.Linear(config.dim, 3 * config.dim, **factory)
        self.proj = operations.Linear(config.dim, config.dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=2)  # (B, N, D)
        return self.proj(sdpa(q, k, v, self.num_heads))


class Block(nn.Module):
    """Pre-norm attention and feed-forward (exact GELU), each with a residual connection."""

    def __init__(self, config: CLIPVisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        self.norm1 = operations.LayerNorm(config.dim, eps=config.eps, **factory)
        self.attn = Attention(config, operations, **factory)
        self.norm2 = operations.LayerNorm(config.dim, eps=config.eps, **factory)
        self.mlp = nn.Sequential(
            operations.Linear(config.dim, config.dim_mlp, **factory),
            nn.GELU(),
            operations.Linear(config.dim_mlp, config.dim, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches to tokens, the blocks, and what CLIP itself does behind them."""

    def __init__(self, config: CLIPVisionConfig, operations: Any, **factory: Any) -> None:
        super().__init__()
        dim, patch = config.dim, config.patch_size
        self.cls_embedding = nn.Parameter(torch.empty(1, 1, dim, **factory))
        self.patch_embedding = operations.Conv2d(
            3, dim, kernel_size=patch, stride=patch, bias=False, **factory
        )
        self.pos_embedding = nn.Parameter(torch.empty(1, config.num_positions, dim, **factory))
        self.pre_norm = operations.LayerNorm(dim, eps=config.eps, **factory)
        self.transformer = nn.ModuleList(
            Block(config, operations, **factory) for _ in range(config.num_layers)
        )
        self.post_norm = operations.LayerNorm(dim, eps=config.eps, **factory)
        self.head = nn.Parameter(torch.empty(dim, config.out_dim, **factory))

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> tokens (B, N, D), the class token first."""
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, N - 1, D)
        first = self.cls_embedding.to(patches).expand(len(patches), -1, -1)
        return self.pre_norm(torch.cat([first, patches], dim=1) + self.pos_embedding.to(patches))


class CLIPVision(nn.Module):
    """CLIP's image encoder; its state dict has the names and shapes of the original `.pth`.

    Layers are made from `operations`; it runs in the dtype of its input.
    Source: SkyworkAI/SkyReels-V2, `skyreels_v2_infer/modules/clip.py`; agrees with transformers'
    CLIPVisionModelWithProjection through `to_original_names`.
    """

    def __init__(
        self,
        config: CLIPVisionConfig,
        operations: Any = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.visual = VisionTransformer(config, operations, dtype=dtype, device=device)

    def forward(self, pixels: Tensor) -> Tensor:
        """What the I2V models are shown: (B, 3, S, S) of `preprocess` -> (B, N, D).

        The output of the last block but one, not normalised: (B, 257, 1280) in the published
        encoder, S = 224. Raises ValueError for images of another size.
        """
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(
                f"pixels has shape {tuple(pixels.shape)}; this encoder takes (B, 3, {size}, "
                f"{size}), which `preprocess` makes"
            )
        x = self.visual.embed(pixels)
        for block in self.visual.transformer[:-1]:
            x = block(x)
        return x

    def pool(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of CLIP, from the features of `forward`.

        (B, N, D) -> the last block's output (B, N, D) and the image's embedding (B, out_dim).
        """
        x = self.visual.transformer[-1](features)
        pooled = self.visual.post_norm(x[:, 0])
        return x, pooled @ self.visual.head.to(pooled)
