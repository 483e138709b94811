"""Decoding with what layers look back to on the disk: the same frames, in little memory."""

import functools

import pytest
import torch

from devtools.live_bytes import LiveBytes
from skyreels_model.vae import VideoVAE
from skyreels_model.vae.layers import SCORES
from skyreels_model.vae.memory import stages_memory
from skyreels_model.vae.on_disk import Spill, decode_on_disk, find_way, make_tiles, reach
from skyreels_model.vae.past import Past
from skyreels_model.vae.tiles import Side, Tiling

SMALL = {"dim": 4, "num_res_blocks": 0}
OTHERS = {"temporal_downsample": (True, True, False)}, {"temporal_downsample": (False,) * 3}


def drawn(**config):
    torch.manual_seed(0)
    vae = VideoVAE(**config)
    for weight in vae.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return vae.eval()


def overlapping(vae, size):
    """Tiles of which little more than what they share is kept."""
    overlap = 2 * reach(vae)
    return Tiling(*(Side(min(overlap + 4, side - 1), overlap) for side in size))


@pytest.mark.parametrize(
    ("config", "block"), [({}, 1), ({}, 16), *((other, 2) for other in OTHERS)]
)
@torch.no_grad()
def test_frames_are_those_of_an_untiled_stream(tmp_path, config, block):
    vae = drawn(**SMALL, **config)
    latents = torch.randn(1, 16, 3, 7, 13)
    tiling = overlapping(vae, (7, 13)) if reach(vae) < 3 else Tiling(Side(7, 0), Side(12, 10))
    assert len(make_tiles(tiling, (7, 13), tmp_path)) > 1
    ways = decode_on_disk(vae, latents, tiling, tmp_path, lambda some: some * 0.5, block=block)
    pieces = list(ways)
    whole = vae.decode(latents * 0.5)
    assert [piece.shape[2] for piece in pieces] == [1] + [vae.time_factor] * 2
    assert (torch.cat(pieces, dim=2) - whole).abs().max() < 1e-5 * whole.abs().max()
    assert not any(tmp_path.iterdir())


@torch.no_grad()
def test_a_tile_reaches_as_far_as_its_frames_see_and_no_farther():
    vae = drawn(dim=4, num_res_blocks=2)
    assert reach(vae) == 3
    wide = 2 * 24  # positions for 24 latents
    x = torch.zeros(1, 16, 1, 2, wide)
    other = x.clone()
    other[..., : 2 * 12] = 1  # the left half
    frames = [vae.decoder.fine(part, Past([])) for part in (x, other)]
    changed = (frames[0] != frames[1]).any(dim=(0, 1, 2, 3)).nonzero().max().item() + 1 - 8 * 12
    assert 8 * 2 < changed <= 8 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_spill_gives_back_every_bit_in_order(tmp_path, dtype):
    spill = Spill(tmp_path)
    some = [torch.randn(2, 3, 4, dtype=dtype), torch.randn(5, dtype=dtype).expand(2, 5)]
    for tensor in some:
        spill.add(tensor)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(spill.read(), some, strict=True))
    with spill.lend(last=False) as lent:
        lent[:] = [torch.ones(3)]
    assert not lent and [one.tolist() for one in spill.read()] == [[1, 1, 1]]
    with spill.lend(last=True):
        pass
    assert not list(spill.read())


@pytest.mark.parametrize(
    ("itemsize", "tiles", "memory"), [(4, (2, 3), 1.51e9), (2, (2, 3), 0.76e9)]
)
def test_the_published_vae_takes_less_than_2_gb_at_540p(tmp_path, itemsize, tiles, memory):
    """Untiled in float32 it is 8.2 GB by the same count."""
    way = find_way(VideoVAE(device="meta"), (68, 120), itemsize, int(memory))
    assert way.memory <= memory and way.disk < 9e9
    assert len(make_tiles(way.tiling, (68, 120), tmp_path)) == tiles[0] * tiles[1]


def test_what_cannot_be_had_in_so_little_takes_the_least():
    vae = VideoVAE(device="meta")
    assert find_way(vae, (68, 120), 4, 0) == find_way(vae, (68, 120), 4, int(1.4e9))


@pytest.mark.slow
def test_the_estimates_are_the_peaks():
    """Of each stage of a step, on PyTorch's meta device."""
    vae = VideoVAE(device="meta")
    told = stages_memory(vae, 544, 960, 4)
    stages = [functools.partial(vae.decoder.coarse, start=a, stop=b) for a, b in vae.decoder.stages]
    caches = [[] for _ in range(3)]
    with torch.no_grad(), LiveBytes() as memory:
        for _ in range(2):
            peaks, x = [], torch.empty(1, 16, 1, 68, 120, device="meta")
            for stage, cache in zip([*stages, vae.decoder.fine], caches, strict=True):
                assert x.nbytes <= told.given[len(peaks)]
                others = sum(past.nbytes for one in caches if one is not cache for past in one)
                memory.reset_peak()
                made = stage(x, Past(cache))
                peaks.append(memory.peak - others)
                x = made
            del x, made
    # There attention has its scores, the most of the first stage. On a CPU it has not.
    assert told.coarse[0].total < peaks[0] < told.coarse[0].total + 2 * 4 * SCORES
    found = told.coarse[1].total, told.fine.total
    assert found == pytest.approx(tuple(peaks[1:]), rel=0.02)


@torch.no_grad()
def test_it_ends_between_pieces_and_leaves_nothing(tmp_path):
    calls = []

    def tick():
        calls.append(len(list(tmp_path.iterdir())))
        if len(calls) == 9:
            raise KeyboardInterrupt

    vae, latents = drawn(**SMALL), torch.randn(1, 16, 3, 7, 13)
    with pytest.raises(KeyboardInterrupt):
        list(decode_on_disk(vae, latents, overlapping(vae, (7, 13)), tmp_path, tick=tick))
    assert len(calls) == 9 and not any(tmp_path.iterdir())
