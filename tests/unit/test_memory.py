"""What a forward needs beyond the weights: bounded, and as the formulas say."""

import dataclasses
import itertools

import pytest
import torch

from devtools.live_bytes import LiveBytes
from skyreels_model.memory import forward_bytes, weights_bytes
from skyreels_model.model import SkyReelsModel
from toy.random_weights import PUBLISHED

P540, P720 = (25, 68, 120), (31, 90, 160)  # latents of 97 frames at 960x544, 121 at 1280x720
SIZES = ((1, 8, 8), (3, 30, 52), (13, 24, 40), (5, 68, 120), P540, P720)


def flash(q, k, v, heads):
    """Attention that makes what flash attention makes: the result, and a sum a row and head."""
    sums = torch.empty(q.shape[0], heads, q.shape[1], device=q.device)
    out = torch.empty_like(q)
    del sums
    return out


def published(name, **changes):
    """A published model with two blocks: every block needs the same, one after the other."""
    return dataclasses.replace(PUBLISHED[name], num_layers=2, **changes)


def peak(config, batch, size, dtype, text_rows=512):
    """Bytes alive at the peak of a forward that is not computed."""
    model = SkyReelsModel(config, dtype=dtype, device="meta").requires_grad_(False)
    given = {"dtype": dtype, "device": "meta"}
    x = torch.empty(batch, config.in_dim, *size, **given)
    t = torch.empty(batch, size[0], device="meta")
    context = torch.empty(batch, text_rows, config.text_dim, **given)
    image = torch.empty(batch, 257, 1280, **given) if config.model_type == "i2v" else None
    with torch.no_grad(), LiveBytes() as live:
        model(x, t, context, clip_fea=image, attend=flash)
    return live.peak


@pytest.mark.parametrize("name", ["DF-14B-540P", "I2V-14B-540P"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("size", "limit"), [(P540, 6e9), (P720, 12e9)])
def test_14b_stays_under_its_limits(name, batch, size, limit):
    """For positive and negative prompt together, too; alone they need half of it."""
    needed = peak(published(name), batch, size, torch.bfloat16)
    assert 0.9 * limit * batch / 2 / 1.2 < needed < limit * batch / 2


@pytest.mark.parametrize("name", ["DF-1.3B-540P", "DF-14B-540P", "I2V-1.3B-540P", "I2V-14B-540P"])
def test_the_estimate_is_the_peak(name):
    for batch, size, dtype in itertools.product(
        (1, 2), SIZES, (torch.bfloat16, torch.float32, torch.float16)
    ):
        needed = peak(published(name), batch, size, dtype)
        estimate = forward_bytes(published(name), batch, *size, dtype.itemsize)
        assert abs(estimate / needed - 1) < 0.02, (batch, size, dtype, estimate, needed)


@pytest.mark.parametrize("rows", [17, 512, 2048])
def test_the_estimate_knows_the_texts_length(rows):
    config, size = published("DF-1.3B-540P"), (1, 16, 30)
    needed = peak(config, 1, size, torch.bfloat16, rows)
    assert abs(forward_bytes(config, 1, *size, 2, rows) / needed - 1) < 0.02


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_are_counted_as_they_are_held(name, dtype):
    config = published(name)
    model = SkyReelsModel(config, dtype=dtype, device="meta")
    held = sum(p.nbytes for p in model.parameters())
    assert weights_bytes(config, dtype.itemsize) == held
