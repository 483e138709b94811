"""The CLIP image encoder of the I2V models, its preprocessing, and the names its files use.

Architecture: the image half of open-clip's XLM-Roberta-large ViT-H/14 (Radford et al.,
arXiv:2103.00020), a pre-norm vision transformer (Dosovitskiy et al., arXiv:2010.11929).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..attention import sdpa
from ..operations import Operations
from ..rules import refusal
from .config import CLIPVisionConfig


class Attention(nn.Module):
    """Full attention over an image's tokens, q, k and v from one layer."""

    def __init__(self, config: CLIPVisionConfig, operations: Operations, **factory: Any) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.to_qkv = operations.Linear(config.dim, 3 * config.dim, **factory)
        self.proj = operations.Linear(config.dim, config.dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).chunk(3, dim=2)  # (B, N, D)
        return self.proj(sdpa(q, k, v, self.num_heads))


class Block(nn.Module):
    """Pre-norm attention and feed-forward (exact GELU), each with a residual connection."""

    def __init__(self, config: CLIPVisionConfig, operations: Operations, **factory: Any) -> None:
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
    """Patches to tokens, the blocks, and what CLIP itself does after them."""

    def __init__(self, config: CLIPVisionConfig, operations: Operations, **factory: Any) -> None:
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
        operations: Operations = nn,
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
            rule = f"(B, 3, {size}, {size}), which `preprocess` makes"
            raise refusal("the shape of pixels", tuple(pixels.shape), rule)
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
