"""Bytes that a transformer takes, from its sizes alone: weights, and the peak of a forward.

A forward without gradients holds most in self-attention: the stream of tokens, their queries, keys
and values, and what attention returns, five tensors (B, L, D). All else is done in pieces where it
would need more (see `layers`); at sizes of a few thousand tokens the text's rows weigh, too.
"""

from __future__ import annotations

from .config import CLIP_DIM, ModelConfig
from .layers import hidden_pieces, piece_count

CLIP_TOKENS = 257
FLOAT32 = 4


def weights_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of a transformer's weights at `itemsize` bytes a number.

    The time and fps embeddings stay in float32, and at one byte a number so does everything but
    the blocks' large layers.
    """
    dim, image = config.dim, config.model_type == "i2v"
    fine = FLOAT32 if itemsize == 1 else itemsize
    large = 8 * _linear(dim, dim) + _linear(dim, config.ffn_dim) + _linear(config.ffn_dim, dim)
    small = 6 * dim + 4 * dim + 2 * dim  # modulation, RMS norms, the norm before cross-attention
    if image:
        large, small = large + 2 * _linear(dim, dim), small + dim
    volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    ends = _linear(config.in_dim * volume, dim) + _linear(dim, config.out_dim * volume) + 2 * dim
    ends += _linear(config.text_dim, dim) + _linear(dim, dim)
    if image:
        ends += 2 * CLIP_DIM + _linear(CLIP_DIM, CLIP_DIM) + _linear(CLIP_DIM, dim) + 2 * dim
    time = _linear(config.freq_dim, dim) + _linear(dim, dim) + _linear(dim, 6 * dim)
    if config.fps_embedding:
        time += 2 * dim + _linear(dim, dim) + _linear(dim, 6 * dim)
    layers = config.num_layers
    return layers * (large * itemsize + small * fine) + ends * fine + time * FLOAT32


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
    casts: bool = False,
) -> int:
    """Peak bytes of a forward without gradients, beyond the weights and beyond its inputs.

    frames, height, width are of the latents; itemsize is of what is computed in; text_rows as
    given to the model; casts: whether a host converts each large layer's weight for its product.
    Counts timesteps per frame, an I2V model's image, and attention that keeps its scores to itself
    (flash, memory-efficient). Not counted: tensors that other nodes keep, workspaces of the
    libraries, and what an allocator keeps in reserve.
    """
    dim, image = config.dim, CLIP_TOKENS if config.model_type == "i2v" else 0
    grid = [-(-n // p) for n, p in zip((frames, height, width), config.patch_size, strict=True)]
    tokens = grid[0] * grid[1] * grid[2]
    stream = batch * tokens * dim * itemsize
    text = batch * text_rows * dim * itemsize
    context = text + batch * image * dim * itemsize
    rope = tokens * config.head_dim * FLOAT32  # half as many complex numbers
    time = batch * grid[0] * dim * FLOAT32
    kept = rope + context + 7 * time  # e and its projection
    in_blocks = kept + 6 * time + block_bytes(config, batch, tokens, text_rows, itemsize, casts)
    # Angles, ones and rotations in float64 while the table is made, beside the first stream.
    before = context + 7 * time + stream + max(stream + rope, 4 * rope)
    patches = batch * tokens * config.out_dim * config.patch_size[1] * config.patch_size[2]
    after = kept + stream + max(2 * stream, stream + patches * itemsize, 3 * patches * itemsize)
    embedding = 7 * time + 2 * text
    return max(in_blocks, before, after, embedding)


def block_bytes(
    config: ModelConfig,
    batch: int,
    tokens: int,
    text_rows: int,
    itemsize: int,
    casts: bool = False,
) -> int:
    """Peak bytes of a block's tensors, the stream included, beyond what is there for all blocks."""
    dim, rows = config.dim, batch * tokens
    stream = rows * dim * itemsize
    text = batch * text_rows * dim * itemsize
    scores = rows * config.num_heads * FLOAT32  # one sum a query and head, of flash attention
    # Plain operators square a float32 copy of what they norm; a GPU's own kernel needs less.
    norm_bytes = 2 * FLOAT32 if itemsize == FLOAT32 else 3 * FLOAT32
    norm = rows * dim * norm_bytes // piece_count(stream)
    projections = 4 * stream + norm
    square, wide = (casts * dim * n * itemsize for n in (dim, config.ffn_dim))
    attention = 5 * stream + max(scores, square)
    text_norm = 3 * stream + text + batch * text_rows * dim * norm_bytes
    cross = 4 * stream + scores + 2 * text
    if config.model_type == "i2v":
        cross = max(cross, 5 * stream + scores + 2 * text * CLIP_TOKENS // text_rows)
    count = hidden_pieces(rows, dim, config.ffn_dim, itemsize)
    hidden = stream * config.ffn_dim // dim
    feed_forward = 2 * stream + (hidden if count == 1 else (hidden + stream) // count) + wide
    return max(projections, attention, text_norm, cross, feed_forward)
