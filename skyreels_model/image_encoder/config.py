"""Sizes of a CLIP image encoder, read from its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..files.keys import looks_like
from ..rules import refusal

# ViT-H's width per head; files do not tell the number of heads.
HEAD_DIM = 80
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
                f"the file looks like {looks_like(state_dict)} ({len(state_dict)} "
                f"tensors, no {absent[0]!r}); a CLIP ViT-H image encoder is needed, such as "
                f"models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth or "
                f"clip_vision_h.safetensors"
            )
        dim, _, _, patch_size = state_dict["visual.patch_embedding.weight"].shape
        if dim % head_dim:
            rule = f"a multiple of the head width {head_dim} (CLIP ViT-H, for I2V models: 1280)"
            raise refusal(
                "the encoder's width", dim, rule, max(1, round(dim / head_dim)) * head_dim
            )
        positions = state_dict["visual.pos_embedding"].shape[1]
        grid = math.isqrt(positions - 1)
        if grid**2 != positions - 1:
            rule = "a square of patches and one of the class token"
            raise refusal("the number of positions", positions, rule, grid**2 + 1)
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
