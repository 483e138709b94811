"""Bytes that the text encoder takes beside its weights, from its sizes alone.

Most is held in a block's feed-forward: three hidden layers (B, L, dim_ffn), beside the bias of the
block's attention (heads, L, L). Of a short text it is the result, which always has 512 rows.
"""

from __future__ import annotations

from .config import UMT5Config
from .tokenizer import MAX_LENGTH

BUCKET = 8  # int64


def forward_bytes(
    config: UMT5Config, batch: int, length: int, itemsize: int, casts: bool = False
) -> int:
    """Peak bytes of a forward without gradients, beyond the weights and beyond its inputs.

    length: tokens of the longest text, all that is computed of the 512 rows; texts of a batch are
    taken to be of different lengths. itemsize is of what is computed in; casts: whether a host
    converts each layer's weight for its product. Counts attention that keeps its scores to itself.
    """
    rows, square = batch * length, length * length
    stream, inner, hidden = (
        rows * width * itemsize for width in (config.dim, config.dim_attn, config.dim_ffn)
    )
    bias = config.num_heads * square * itemsize
    # A batch has a bias for each text, with the padding of the shorter ones masked.
    biases, made = (bias, 2 * bias) if batch == 1 else (batch * bias, (batch + 1) * bias)
    narrow, wide = (casts * config.dim * n * itemsize for n in (config.dim_attn, config.dim_ffn))
    # The block's input, what is normed of it, and the result; queries, keys, values, and attended.
    attention = biases + 3 * stream + 4 * inner + narrow
    # The block's input, the stream, and what is normed of it.
    feed_forward = biases + 3 * stream + max(3 * hidden, 2 * hidden + wide)
    padded = stream + batch * MAX_LENGTH * config.dim * itemsize
    return BUCKET * square + max(stream + made, attention, feed_forward, padded)
