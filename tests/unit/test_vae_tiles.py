"""The VAE in tiles: their shares, their streams, and what a lack of memory does."""

import itertools

import pytest
import torch
from golden_data import relative_l2, weights

from skyreels_model.vae import VideoVAE
from skyreels_model.vae.shelf import Shelf
from skyreels_model.vae.tiles import (
    Side,
    Tile,
    TiledDecodeStream,
    TiledEncodeStream,
    Tiling,
    count_coded,
    ramps,
    tilings,
)

SIZE = (12, 14)  # latents


@pytest.fixture(scope="module")
def vae() -> VideoVAE:
    state = weights("weights_vae.safetensors")
    model = VideoVAE.from_state_dict(state)
    model.load_state_dict(state)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def film(vae) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth moving frames (1, 3, 9, 96, 128) and their latents."""
    y, x = (torch.arange(side * 8) / 20 for side in SIZE)
    t = torch.arange(9)[:, None, None] / 3
    waves = [torch.sin(x * a + y[:, None] * b + t) for a, b in ((1, 2), (2, -1), (-1, 1))]
    frames = torch.stack(waves)[None]
    return frames, vae.encode(frames)


@pytest.mark.parametrize("length", [5, 8, 9, 13, 30, 61])
@pytest.mark.parametrize("side", [Side(8, 2), Side(8, 0), Side(7, 4), Side(16, 4)], ids=str)
def test_tiles_cover_a_side_and_their_shares_add_up(length, side):
    spans = side.spans(length)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(stop - start <= side.size for start, stop in spans)
    for (_, stop), (start, _) in itertools.pairwise(spans):
        assert stop - start >= side.overlap
    total = torch.zeros(length * 8)
    for (start, stop), share in zip(spans, ramps(spans, 8), strict=True):
        assert (share >= 0).all()
        total[start * 8 : stop * 8] += share
    assert torch.allclose(total, torch.ones_like(total))


def test_ways_to_cut_begin_with_few_tiles_that_overlap_fully():
    ways = tilings(60, 104)
    assert (ways[0].rows.size, ways[0].columns.size) == (60, 56)
    assert count_coded(ways[0], 60, 104) == 60 * 112
    counts = [len(way.rows.spans(60)) * len(way.columns.spans(104)) for way in ways]
    full = [way.columns.overlap == 8 or way.rows.overlap == 8 for way in ways]
    wide = full.index(False)
    assert counts[:wide] == [2, 3] and counts[wide:] == sorted(counts[wide:])
    assert all(way.rows.size >= 8 and way.columns.size >= 8 for way in ways)


def test_a_single_tile_is_the_untiled_stream(vae, film):
    frames, z = film
    tiling = Tiling.square(16)
    assert torch.equal(TiledDecodeStream(vae, tiling, SIZE).push(z), vae.decode(z))
    assert torch.equal(TiledEncodeStream(vae, tiling, SIZE).push(frames), z)


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(1, 1, 1), (1, 2)], ids=str)
def test_a_tiled_stream_is_equal_however_it_is_cut(vae, film, lengths):
    frames, z = film
    decode, encode = (
        stream(vae, Tiling.square(8), SIZE) for stream in (TiledDecodeStream, TiledEncodeStream)
    )
    made = torch.cat([decode.push(part) for part in z.split(lengths, dim=2)], dim=2)
    assert torch.equal(made, TiledDecodeStream(vae, Tiling.square(8), SIZE).push(z))
    counts = [4 * lengths[0] - 3, *(4 * n for n in lengths[1:])]
    made = torch.cat([encode.push(part) for part in frames.split(counts, dim=2)], dim=2)
    assert torch.equal(made, TiledEncodeStream(vae, Tiling.square(8), SIZE).push(frames))


def test_each_tile_is_a_stream_of_its_own(vae, film):
    """Where a tile has no neighbour, the result is what its part alone becomes."""
    _, z = film
    made = TiledDecodeStream(vae, Tiling.square(8), SIZE).push(z)
    (top, bottom), (left, right) = Side.of(8).spans(12)[0], Side.of(8).spans(14)[0]
    alone = vae.decode(z[..., top:bottom, left:right])
    assert torch.allclose(made[..., :32, :32], alone[..., :32, :32], atol=1e-6)


def test_the_parts_of_a_tile_go_on_from_its_past(vae, film):
    stream = vae.decode_stream()
    stream.push(film[1][:, :, :1])
    whole = Tile((0, 12), (0, 14), torch.ones(96, 112), stream.cache)
    parts = whole.split(Tiling.square(8), 8)
    assert len(parts) == 4
    for part in parts:
        for past, before in zip(part.cache, whole.cache, strict=True):
            scale = before.shape[3] // 12
            assert torch.equal(past, part.cut(before, scale))
            assert past.untyped_storage().nbytes() == past.nbytes


class ShortOfMemory:
    """Makes a part of the VAE raise as a full device would, at its calls number `when`."""

    def __init__(self, module, largest: int, since: int = 0) -> None:
        self.largest, self.since, self.calls = largest, since, 0
        self.handle = module.register_forward_hook(self)

    def __call__(self, module, args, output) -> None:
        self.calls += 1
        if self.calls > self.since and max(output.shape[3:]) > self.largest:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.slow
@pytest.mark.parametrize("since", [0, 4])
def test_lack_of_memory_splits_the_tiles_and_loses_nothing(vae, film, since):
    """From the first tile on, or in the midst of the film's second block."""
    frames, z = film
    told: list[Tiling] = []
    stream = TiledDecodeStream(vae, Tiling.square(12), SIZE, on_split=told.append)
    short = ShortOfMemory(vae.decoder.head["2"], 8 * 8, since)
    try:
        made = torch.cat([stream.push(z[:, :, :1]), stream.push(z[:, :, 1:])], dim=2)
    finally:
        short.handle.remove()
    assert told == [Tiling(Side.of(12), Side.of(8)), Tiling.square(8)]
    assert made.shape == (1, 3, 9, 96, 112) and relative_l2(made, vae.decode(z)) < 0.9
    ones = sum(_placed(tile, SIZE) for tile in stream.tiles)
    assert torch.allclose(ones, torch.ones_like(ones))


def _placed(tile, size):
    canvas = torch.zeros(size[0] * 8, size[1] * 8)
    tile.cut(canvas, 8).copy_(tile.shares)
    return canvas


def test_a_shelf_is_one_block_that_is_pinned_once_and_given_back():
    cache = [torch.randn(1, 3, 2, 5, 7).bfloat16(), torch.randn(1, 2, 2, 3, 3)]
    pinned = []

    def pin(block):
        pinned.append(block.data_ptr())
        return lambda: pinned.remove(block.data_ptr())

    with torch.inference_mode():
        shelf = Shelf(cache, torch.device("cpu"), pin)
    first = shelf.store(cache)
    second = shelf.store([past + 1 for past in cache])  # in another mode than it was made in
    assert [past.data_ptr() for past in first] == [past.data_ptr() for past in second]
    assert all(torch.equal(kept, past + 1) for kept, past in zip(second, cache, strict=True))
    assert pinned == [first[0].untyped_storage().data_ptr()]
    assert first[1].untyped_storage().data_ptr() == pinned[0]
    del shelf
    assert not pinned
