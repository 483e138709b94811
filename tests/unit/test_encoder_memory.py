"""What the encoders of text and pictures need beside their weights: what their formulas say."""

import dataclasses

import pytest
import torch

from devtools.live_bytes import LiveBytes, allocated_peak, flash_sdpa
from skyreels_model.attention import attend
from skyreels_model.image_encoder import CLIPVision, CLIPVisionConfig
from skyreels_model.image_encoder import memory as image_memory
from skyreels_model.text_encoder import UMT5Config, UMT5Encoder
from skyreels_model.text_encoder import memory as text_memory
from skyreels_model.text_encoder import network as text_network
from toy.random_weights import UMT5_XXL

XXL = dataclasses.replace(UMT5_XXL, num_layers=2)
CLIP_H = CLIPVisionConfig(1280, 5120, 16, 3, 1024)
DTYPES = (torch.float32, torch.bfloat16)


def text_peak(config, lengths, dtype, monkeypatch):
    encoder = UMT5Encoder(config, dtype=dtype, device="meta").requires_grad_(False)
    monkeypatch.setattr(text_network, "_check_text", lambda *given: lengths)  # meta has no numbers
    monkeypatch.setattr(text_network.F, "scaled_dot_product_attention", flash_sdpa)
    ids = torch.zeros(len(lengths), 512, dtype=torch.long, device="meta")
    with torch.no_grad(), LiveBytes() as live:
        encoder(ids, ids.bool())
    return live.peak


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[1], [60], [200], [512], [512, 7], [30, 300, 90]], ids=str)
def test_the_texts_estimate_is_the_peak(lengths, dtype, monkeypatch):
    needed = text_peak(XXL, lengths, dtype, monkeypatch)
    estimate = text_memory.forward_bytes(XXL, len(lengths), max(lengths), dtype.itemsize)
    assert abs(estimate / needed - 1) < 0.01, (estimate, needed)


def test_the_texts_estimate_is_what_the_allocator_hands_out():
    config = UMT5Config(vocab=50, dim=256, dim_attn=256, dim_ffn=1024, num_heads=8, num_layers=2)
    encoder = UMT5Encoder(config).requires_grad_(False)
    ids, mask = torch.ones(1, 512, dtype=torch.long), torch.ones(1, 512, dtype=torch.bool)
    with torch.no_grad():
        needed = allocated_peak(lambda: encoder(ids, mask))
    assert abs(text_memory.forward_bytes(config, 1, 512, 4) / needed - 1) < 0.03


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 40])
def test_the_pictures_estimate_is_the_peak(batch, dtype, monkeypatch):
    """Of all of CLIP: the features and what `pool` makes of them."""
    monkeypatch.setattr(attend, "scaled_dot_product_attention", flash_sdpa)
    tower = CLIPVision(CLIP_H, dtype=dtype, device="meta").requires_grad_(False)
    pixels = torch.empty(batch, 3, 224, 224, device="meta", dtype=dtype)
    with torch.no_grad(), LiveBytes() as live:
        tower.pool(tower(pixels))
    estimate = image_memory.forward_bytes(CLIP_H, batch, dtype.itemsize)
    assert abs(estimate / live.peak - 1) < 0.01, (estimate, live.peak)


@pytest.mark.parametrize("dim_mlp", [128, 1024])
def test_the_pictures_estimate_is_what_the_allocator_hands_out(dim_mlp):
    """Whether a block's attention holds more or its feed-forward."""
    config = CLIPVisionConfig(256, dim_mlp, 4, 3, 64)
    tower = CLIPVision(config).requires_grad_(False)
    pixels = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        needed = allocated_peak(lambda: tower(pixels))
    assert abs(image_memory.forward_bytes(config, 2, 4) / needed - 1) < 0.03, needed
