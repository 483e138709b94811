"""Bytes that a transformer takes, from its sizes alone: weights, and the peak of a forward.

A forward without gradients holds most in self-attention: the float32 stream of tokens, their
queries, keys and values, and what attention returns, five tensors (B, L, D). All else is done in
pieces where it would need more (see `layers`); at sizes of a few thousand tokens the text's rows
weigh, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from .config import CLIP_DIM, ModelConfig
from .layers import hidden_pieces, piece_count

CLIP_TOKENS = 257
FLOAT32 = 4
# What an attention function makes beside its result, in tensors of the size of its queries:
# nothing, or quantised copies, and keys and values in the layouts that its kernels want. What is
# called int8 here (comfy_kitchen's) reads them where they lie, and copies all three in 8 bits.
ATTENTION_COPIES = {"flash": 0.0, "sage": 2.5, "int8": 1.5}


@dataclass(frozen=True)
class Execution:
    """How a forward is run, as far as its memory depends on it.

    casts: a host converts each large layer's weight for its product.
    quantizes: products in 8 bits, for which their inputs are converted, too.
    attention: a key of ATTENTION_COPIES.
    compiled: by torch.compile, which writes over nothing and knows no pieces.
    residuals: for how many samples a cache keeps what the blocks add to the stream
    (`cache.published`): those of the batch, and those whose prompts come apart.
    keeps: frames at rest are seen by keys and values that are kept (`cache.keys_values`), and put
    before those of the other frames in each layer.
    """

    casts: bool = False
    quantizes: bool = False
    attention: str = "flash"
    compiled: bool = False
    residuals: int = 0
    keeps: bool = False


EAGER = Execution()


def weights_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of a transformer's weights at `itemsize` bytes a number.

    The time and fps embeddings and the head's layer stay in float32, and at one byte a number so
    does everything but the blocks' large layers.
    """
    dim, image = config.dim, config.model_type == "i2v"
    fine = FLOAT32 if itemsize == 1 else itemsize
    large = 8 * _linear(dim, dim) + _linear(dim, config.ffn_dim) + _linear(config.ffn_dim, dim)
    small = 6 * dim + 4 * dim + 2 * dim  # modulation, RMS norms, the norm before cross-attention
    if image:
        large, small = large + 2 * _linear(dim, dim), small + dim
    volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    ends = _linear(config.in_dim * volume, dim) + 2 * dim
    ends += _linear(config.text_dim, dim) + _linear(dim, dim)
    if image:
        ends += 2 * CLIP_DIM + _linear(CLIP_DIM, CLIP_DIM) + _linear(CLIP_DIM, dim) + 2 * dim
    exact = _linear(config.freq_dim, dim) + _linear(dim, dim) + _linear(dim, 6 * dim)
    exact += _linear(dim, config.out_dim * volume)
    if config.fps_embedding:
        exact += 2 * dim + _linear(dim, dim) + _linear(dim, 6 * dim)
    layers = config.num_layers
    return layers * (large * itemsize + small * fine) + ends * fine + exact * FLOAT32


def _linear(n_in: int, n_out: int) -> int:
    return n_in * n_out + n_out


def forward_bytes(
    config: ModelConfig,
    batch: int,
    frames: int,
    height: int,
    width: int,
    itemsize: int,
    text_rows: int = 512,
    execution: Execution = EAGER,
) -> int:
    """Peak bytes of a forward without gradients, beyond the weights and beyond its inputs.

    frames, height, width are of the latents; itemsize is of what is computed in; text_rows as
    given to the model. Counts timesteps per frame and an I2V model's image. cuDNN's workspace for
    the one convolution, of the patches, is below the peak (`vae.memory` says how much it is). Not
    counted: tensors that other nodes keep, the workspace of products (cuBLAS's, by default up to
    32 MB) and that of cuDNN's attention (not published), and what an allocator keeps in reserve.
    """
    dim, image = config.dim, CLIP_TOKENS if config.model_type == "i2v" else 0
    grid = [-(-n // p) for n, p in zip((frames, height, width), config.patch_size, strict=True)]
    tokens = grid[0] * grid[1] * grid[2]
    embedded, stream = (batch * tokens * dim * size for size in (itemsize, FLOAT32))
    text = batch * text_rows * dim * itemsize
    context = text + batch * image * dim * itemsize
    rope = 2 * tokens * config.head_dim * FLOAT32  # a matrix for two numbers
    time = batch * grid[0] * dim * FLOAT32
    kept = rope + context + 7 * time  # e and its projection
    in_blocks = kept + 6 * time + block_bytes(config, batch, tokens, text_rows, itemsize, execution)
    # While the table is made, its numbers are also there one by one.
    before = context + 7 * time + embedded + max(rope + stream, 7 * rope // 4)
    patches = batch * tokens * config.out_dim * config.patch_size[1] * config.patch_size[2]
    after = kept + stream + max(stream + patches * FLOAT32, 3 * patches * FLOAT32)
    if execution.compiled:
        after += stream
    embedding = 7 * time + 2 * text
    cached = execution.residuals * tokens * dim * FLOAT32
    return max(in_blocks, before, after, embedding) + cached


def block_bytes(
    config: ModelConfig,
    batch: int,
    tokens: int,
    text_rows: int,
    itemsize: int,
    execution: Execution = EAGER,
) -> int:
    """Peak bytes of a block's tensors, the stream included, beyond what is there for all blocks."""
    dim, rows = config.dim, batch * tokens
    stream, one = rows * dim * FLOAT32, rows * dim * itemsize  # one: queries, keys, …
    text = batch * text_rows * dim * itemsize
    scores = rows * config.num_heads * FLOAT32  # one sum a query and head, of flash attention
    # Plain operators square a float32 copy of what they norm; a GPU's own kernel makes its result.
    norm_bytes = 2 * FLOAT32 if itemsize == FLOAT32 else 3 * FLOAT32
    norm = max(one, rows * dim * norm_bytes // piece_count(one))
    modulated = 2 * stream + (one if itemsize < FLOAT32 else 0)
    projections = stream + 3 * one + norm
    square, wide = (execution.casts * dim * n * itemsize for n in (dim, config.ffn_dim))
    narrow, narrow_hidden = (execution.quantizes * rows * n for n in (dim, config.ffn_dim))
    copies = int(ATTENTION_COPIES[execution.attention] * one)
    attention = stream + (4 + 2 * execution.keeps) * one + max(scores, square + narrow, copies)
    # A compiled block also keeps its input beside each sum, and what its feed-forward is given.
    beside = stream * (1 + execution.compiled)
    text_norm = beside + 2 * one + text + batch * text_rows * dim * norm_bytes
    cross = beside + 3 * one + max(scores, copies // 3) + 2 * text
    if config.model_type == "i2v":
        image = 2 * text * CLIP_TOKENS // text_rows
        cross = max(cross, beside + 4 * one + max(scores, copies // 3) + image)
    hidden = rows * config.ffn_dim * itemsize
    count = 1 if execution.compiled else hidden_pieces(rows, dim, config.ffn_dim, itemsize)
    inside = hidden if count == 1 else (hidden + one) // count
    feed_forward = beside + one + inside + narrow_hidden // count + wide
    feed_forward += one * execution.compiled
    added = (3 * stream + one) * execution.compiled
    return max(modulated, projections, attention, text_norm, cross, feed_forward, added)
