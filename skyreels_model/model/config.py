"""What a diffusion transformer's checkpoint is: read from its tensors, never from its name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..files.keys import looks_like
from ..files.quantized import Weights
from ..rules import refusal

HEAD_DIM = 128
CLIP_DIM = 1280
# What each kind takes at its input: latents, and for I2V the mask's and the image's beside them.
IN_DIMS = {"t2v": 16, "i2v": 36}
# What tells models of the same family whose other inputs are not read here, by names' beginnings.
RELATIVES = {
    "vace_": "a Wan VACE model (it has control layers)",
    "control_adapter.": "a Wan model for camera control",
    "ref_conv.": "a Wan Fun model (it has a reference image's layer)",
    "casual_audio_encoder.": "a Wan 2.2 S2V model (it has a sound's layers)",
    "audio_proj.": "a HuMo model (it has a sound's layers)",
    "face_adapter.": "a Wan 2.2 Animate model (it has a face's layers)",
    "patch_embedding_": "a Wan model with a further input",
    "img_emb.emb_pos": "a Wan 2.1 FLF2V model (it takes two images)",
    "condition_embedder.image_embedder.pos_embed": "a Wan 2.1 FLF2V model (it takes two images)",
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a SkyReels-V2 (Wan 2.1) diffusion transformer.

    `model_type` is "t2v" (also every diffusion-forcing checkpoint) or "i2v"; `fps_embedding` says
    whether the checkpoint was trained with a frame-rate embedding (DF-1.3B only).
    Source: SkyworkAI/SkyReels-V2, `skyreels_v2_infer/modules/transformer.py`.
    """

    model_type: str = "t2v"
    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)
    fps_embedding: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.model_type not in ("t2v", "i2v"):
            raise refusal("model_type", self.model_type, "'t2v' or 'i2v'")
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            rule = f"a multiple of twice num_heads ({self.num_heads}): an even width per head"
            step = 2 * self.num_heads
            raise refusal("dim", self.dim, rule, max(1, round(self.dim / step)) * step)
        if self.freq_dim % 2:
            raise refusal("freq_dim", self.freq_dim, "even", self.freq_dim + 1)

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_state_dict(cls, state_dict: Weights, head_dim: int = HEAD_DIM) -> ModelConfig:
        """Read the sizes from tensor shapes (original key names, no prefix).

        Raises ValueError, saying what the file looks like instead, when it is not a Wan 2.1
        diffusion transformer. `head_dim` is 128 in every published checkpoint.
        """
        require_transformer(state_dict)
        patch = state_dict["patch_embedding.weight"]  # (D, C, pt, ph, pw)
        dim, in_dim = int(patch.shape[0]), int(patch.shape[1])
        if dim % head_dim:
            rule = (
                f"a multiple of the head width {head_dim} (every published SkyReels-V2 and Wan 2.1 "
                f"file has heads of {HEAD_DIM})"
            )
            nearest = max(1, round(dim / head_dim)) * head_dim
            raise refusal("the checkpoint's width", dim, rule, nearest)
        patch_size = (int(patch.shape[2]), int(patch.shape[3]), int(patch.shape[4]))
        patch_volume = patch_size[0] * patch_size[1] * patch_size[2]
        model_type = "i2v" if "blocks.0.cross_attn.k_img.weight" in state_dict else "t2v"
        _require_kind(state_dict, model_type, in_dim)
        return cls(
            model_type=model_type,
            dim=dim,
            ffn_dim=int(state_dict["blocks.0.ffn.0.weight"].shape[0]),
            num_heads=dim // head_dim,
            num_layers=count_blocks(state_dict),
            in_dim=in_dim,
            out_dim=int(state_dict["head.head.weight"].shape[0]) // patch_volume,
            text_dim=int(state_dict["text_embedding.0.weight"].shape[1]),
            freq_dim=int(state_dict["time_embedding.0.weight"].shape[1]),
            patch_size=patch_size,
            fps_embedding="fps_embedding.weight" in state_dict,
        )


REQUIRED = (
    "patch_embedding.weight",
    "text_embedding.0.weight",
    "time_embedding.0.weight",
    "blocks.0.ffn.0.weight",
    "head.head.weight",
)


def require_transformer(state_dict: Weights) -> None:
    """Raise ValueError unless these are a Wan 2.1 diffusion transformer's tensors."""
    absent = [key for key in REQUIRED if key not in state_dict]
    if absent:
        raise ValueError(
            f"this is not a SkyReels-V2 or Wan 2.1 diffusion model: it looks like "
            f"{looks_like(state_dict)} ({len(state_dict)} tensors, no {absent[0]!r}; is a shard "
            f"missing?)"
        )
    shape = tuple(state_dict["patch_embedding.weight"].shape)
    if len(shape) != 5:
        raise refusal("the shape of patch_embedding.weight", shape, "of five dimensions")


def _require_kind(state_dict: Weights, model_type: str, in_dim: int) -> None:
    """Raise ValueError for a relative of Wan 2.1 T2V and I2V that takes another input."""
    for begin, what in RELATIVES.items():
        if any(key.startswith(begin) for key in state_dict):
            raise ValueError(
                f"this is {what}, which is not read here; needed is SkyReels-V2 or Wan 2.1 T2V or "
                f"I2V. ComfyUI's own loader and nodes are for it"
            )
    if in_dim != IN_DIMS[model_type]:
        layers = "image layers" if model_type == "i2v" else "no image layers"
        raise ValueError(
            f"this model takes {in_dim} channels and has {layers}, as Wan 2.2 I2V and 5B or Wan "
            f"Fun do, which are not read here; SkyReels-V2 and Wan 2.1 take {IN_DIMS['t2v']} (T2V, "
            f"DF), or {IN_DIMS['i2v']} with image layers (I2V)"
        )


def count_blocks(state_dict: Weights) -> int:
    """Number of transformer blocks; raises ValueError if one in between is missing."""
    found = {int(m.group(1)) for key in state_dict if (m := re.match(r"blocks\.(\d+)\.", key))}
    absent = next(index for index in range(len(found) + 1) if index not in found)
    if absent < len(found):
        raise ValueError(f"block {absent} of {max(found) + 1} is missing (is a shard missing?)")
    return len(found)
