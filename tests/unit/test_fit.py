"""Will it fit: the numbers that people are told are those that the host is told."""

import dataclasses
import pathlib

import pytest
import torch

from devtools.live_bytes import LiveBytes
from skyreels_model import budget as fit
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.memory import Execution, forward_bytes
from toy.random_weights import PUBLISHED

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
WINDOW_540P = (25, 960, 544)


def test_the_models_are_the_published_ones():
    assert fit.MODELS["1.3B"] == PUBLISHED["DF-1.3B-540P"]
    assert fit.MODELS["14B"] == PUBLISHED["DF-14B-540P"] == PUBLISHED["DF-14B-720P"]


def test_the_readmes_table_is_computed():
    text = README.read_text(encoding="utf-8")
    assert fit.table() in text, f"put there:\n{fit.table()}"
    vae = [fit.vae_bytes(*size) / fit.GB for size in ((960, 544), (1280, 720))]
    assert f"{vae[0]:.1f} GB at 540P and {vae[1]:.1f} GB at 720P" in text


def test_one_prompt_more_needs_a_forward_more():
    config = fit.MODELS["14B"]
    one, two = (fit.sampling_bytes(config, n, 25, 68, 120, 2, Execution()) for n in (1, 2))
    forwards = [forward_bytes(config, n, 25, 68, 120, 2) for n in (1, 2)]
    assert two - one == forwards[1] - forwards[0] + 4 * 16 * 25 * 68 * 120 * 4


@pytest.mark.parametrize("model", fit.MODELS)
def test_a_window_needs_what_a_forward_holds(model):
    """Counted on meta, with what the film keeps beside; and three layers, where weights stream."""
    config = dataclasses.replace(fit.MODELS[model], num_layers=1)
    told = fit.need(config, 5, 416, 240, 2)
    made = SkyReelsModel(config, dtype=torch.bfloat16, device="meta").requires_grad_(False)
    largest = max(p.nbytes for p in made.blocks.parameters())
    assert told.layers == 3 * largest
    held = sum(p.nbytes for p in made.parameters())
    assert told.weights == held
    x = torch.empty(1, 16, 5, 30, 52, dtype=torch.bfloat16, device="meta")
    t, context = torch.empty(1, 5, device="meta"), torch.empty(1, 512, 4096, device="meta").to(x)

    def flash(q, k, v, heads):
        return torch.empty_like(q)

    with torch.no_grad(), LiveBytes() as live:
        made(x, t, context, attend=flash)
    film = 14 * 2 * x.nbytes  # in float32
    assert abs(told.sampling / (live.peak + film) - 1) < 0.15


def test_a_card_holds_all_streams_or_is_too_small():
    need = fit.Need(weights=10 * fit.GB, sampling=3 * fit.GB, layers=fit.GB)
    verdicts = {size: need.verdict(size * fit.GB) for size in (4, 5, 13, 14, 80)}
    assert verdicts == {4: "-", 5: "streamed", 13: "streamed", 14: "all", 80: "all"}


def test_what_is_told_of_a_card():
    text = fit.describe_memory(*WINDOW_540P, ("NVIDIA GeForce RTX 3060", 12 * fit.GB))
    one = fit.need(fit.MODELS["14B"], *WINDOW_540P, 1)
    whole, streamed, ram = (n / fit.GB for n in (one.resident, one.streamed, one.weights))
    assert f"fp8 {whole:.1f} / {streamed:.1f} (RAM {ram:.1f})" in text
    assert text.splitlines()[-1] == (
        "this machine: NVIDIA GeForce RTX 3060, 12.0 GB; fit: 1.3B bf16, 1.3B fp8; streamed: "
        "14B bf16, 14B fp8"
    )
    small = fit.describe_memory(121, 1280, 720, ("GPU", 6 * fit.GB)).splitlines()[-1]
    assert small.endswith("too large: 1.3B bf16, 1.3B fp8, 14B bf16, 14B fp8")
    assert fit.describe_memory(*WINDOW_540P, None).endswith("\nthis machine: no GPU")


def test_fewer_latents_need_less():
    needs = [fit.need(fit.MODELS["14B"], n, 960, 544, 2).sampling for n in (1, 13, 25, 31)]
    assert needs == sorted(set(needs))


def test_a_film_of_ten_minutes_at_540p_takes_90_gb_of_frames():
    frames, latents = fit.film_bytes(600 * 24, 3600, 960, 544)
    assert frames == 600 * 24 * 544 * 960 * 3 * 4 and latents == 3600 * 16 * 68 * 120 * 4
    text = fit.describe_ram(600 * 24, 3600, 960, 544, 32 * fit.GB)
    assert f"frames {frames / fit.GB:.1f} GB" in text and "TOO LARGE: this machine has 32.0" in text


def test_a_film_that_the_ram_holds_is_not_warned_of():
    whole = sum(fit.film_bytes(97, 25, 960, 544))
    assert "TOO LARGE" not in fit.describe_ram(97, 25, 960, 544, whole)
    assert "TOO LARGE" in fit.describe_ram(97, 25, 960, 544, whole - 1)
