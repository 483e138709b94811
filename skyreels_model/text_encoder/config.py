"""Sizes of a UMT5 encoder, read from its tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..files.quantized import Weights
from ..rules import refusal
from .names import count_blocks, refuse_incomplete, refuse_other_files

COMPUTE_DTYPES = (torch.float32, torch.bfloat16)


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
            rule = f"a multiple of num_heads ({self.num_heads})"
            raise refusal("dim_attn", self.dim_attn, rule, nearest)

    @classmethod
    def from_state_dict(cls, state_dict: Weights) -> UMT5Config:
        """Read the sizes from the shapes of a checkpoint with the original names.

        `max_distance` and `eps` leave no trace in a file and keep their published values.
        Raises ValueError, saying what the file looks like, when it is not a UMT5 encoder.
        """
        refuse_other_files(state_dict)
        refuse_incomplete(state_dict)
        vocab, dim = state_dict["token_embedding.weight"].shape
        num_buckets, num_heads = state_dict["blocks.0.pos_embedding.embedding.weight"].shape
        return cls(
            vocab=vocab,
            dim=dim,
            dim_attn=state_dict["blocks.0.attn.q.weight"].shape[0],
            dim_ffn=state_dict["blocks.0.ffn.fc1.weight"].shape[0],
            num_heads=num_heads,
            num_layers=count_blocks(state_dict),
            num_buckets=num_buckets,
        )
