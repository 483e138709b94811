"""Bytes that the image encoder takes beside its weights, from its sizes alone.

A block holds most in its feed-forward: the hidden layer before and after its GELU.
"""

from __future__ import annotations

from .config import CLIPVisionConfig

FLOAT32 = 4


def forward_bytes(config: CLIPVisionConfig, batch: int, itemsize: int, casts: bool = False) -> int:
    """Peak bytes of a forward without gradients, beyond the weights and beyond its inputs.

    batch: images at once; itemsize is of what is computed in; casts: whether a host converts each
    layer's weight for its product. Counts attention that keeps its scores to itself.
    """
    rows = batch * config.num_positions
    stream, hidden = (rows * width * itemsize for width in (config.dim, config.dim_mlp))
    square, wide = (casts * config.dim * n * itemsize for n in (config.dim, config.dim_mlp))
    scores = rows * config.num_heads * FLOAT32  # one sum a query and head, of flash attention
    # The block's input and what is normed of it; queries, keys and values; attended, the result.
    attention = 6 * stream + max(scores, stream + square)
    projections = 5 * stream + 3 * square
    # The block's input, the stream and what is normed of it.
    feed_forward = 3 * stream + max(2 * hidden, hidden + stream + wide)
    return max(projections, attention, feed_forward)
