"""Colour drift: told, held back while a film is made, and nothing else is touched."""

import dataclasses

import pytest
import torch

from skyreels_model import drift
from skyreels_model.history import latent_history
from skyreels_model.plan import FilmPlan
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.shots import Shot

PLAN = FilmPlan(num_frames=145, width=16, height=16, window=17, overlap=9, steps=4, prefix_noise=0)


def noise(seed, frames=5, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, frames, 4, 4, generator=generator) * scale + shift


def test_statistics_are_those_of_each_channel():
    x = noise(0)
    mean, std = drift.statistics(x)
    assert torch.allclose(mean, x.mean((0, 2, 3, 4))) and mean.shape == (16,)
    assert torch.allclose(std, x.std((0, 2, 3, 4), unbiased=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anchored_latents_have_the_references_statistics_and_their_own_motion(dtype):
    x, reference = noise(0, scale=1.4, shift=0.5).to(dtype), drift.statistics(noise(1))
    assert torch.allclose(drift.anchored(x, reference, 0.0), x, atol=1e-5)
    whole = drift.anchored(x, reference, 1.0)
    assert whole.dtype == dtype
    assert torch.allclose(
        drift.statistics(whole), reference, atol=0.01 if dtype != torch.float32 else 1e-5
    )
    half = drift.statistics(drift.anchored(x, reference, 0.5))
    assert torch.allclose(half, (drift.statistics(x) + reference) / 2, atol=0.01)
    # Every channel is only shifted and scaled.
    a, b = (t.float()[0].flatten(1) for t in (x, whole))
    a, b = ((t - t.mean(1, keepdim=True)) / t.std(1, keepdim=True) for t in (a, b))
    assert torch.allclose(a, b, atol=0.05 if dtype != torch.float32 else 1e-4)


def test_a_channel_without_contrast_stays_finite():
    x = torch.zeros(1, 16, 2, 4, 4)
    assert drift.anchored(x, drift.statistics(noise(1)), 1.0).isfinite().all()


def brightening(x, t):
    """A model that makes every window a little brighter than what it continues."""
    target = x[:, :, :3].mean((2, 3, 4), keepdim=True) + 0.15
    return (x - target) / (t[:, None, :, None, None] / 1000).clamp_min(0.02) * 0.9


def film_of(plan):
    film = Film(plan)
    list(generate(brightening, plan, SeededNoise(1), latent_history(3), film=film))
    own = [
        w[:, :, window.repeated :] for w, window in zip(film.finished, plan.windows(), strict=True)
    ]
    return own, drift.statistics(own[0])


def test_anchor_holds_a_film_that_drifts():
    free, reference = film_of(PLAN)
    drifts = [drift.measure(0, window, reference).shift for window in free]
    assert drifts[0] == 0 and drifts == sorted(drifts) and drifts[-1] > 1
    held, reference = film_of(dataclasses.replace(PLAN, anchor=1.0))
    assert all(drift.measure(0, window, reference).shift < 1e-4 for window in held)
    half, reference = film_of(dataclasses.replace(PLAN, anchor=0.5))
    assert 0.01 < drift.measure(0, half[-1], reference).shift < drifts[-1] / 4
    assert torch.equal(free[0], held[0])


def test_a_cut_begins_afresh():
    shots = (Shot(49), Shot(96, cut=True))
    held, _ = film_of(dataclasses.replace(PLAN, anchor=1.0, shots=shots))
    first = next(w.index for w in dataclasses.replace(PLAN, shots=shots).windows() if w.shot == 1)
    reference = drift.statistics(held[first])
    assert not torch.allclose(reference, drift.statistics(held[0]), atol=1e-3)
    assert all(drift.measure(0, w, reference).shift < 1e-4 for w in held[first:])


def test_strength_out_of_range_is_told():
    with pytest.raises(ValueError, match="anchor is 1.5; it must be 0 to 1; nearest: 1"):
        dataclasses.replace(PLAN, anchor=1.5)


def test_meter_tells_and_draws():
    reference = drift.statistics(noise(0))
    windows = [noise(0), noise(0, shift=0.3), noise(0, scale=1.5)]
    drifts = [drift.measure(33 * i, w, reference) for i, w in enumerate(windows)]
    assert drifts[0].shift < 1e-5 and drifts[1].shift == pytest.approx(0.3, abs=0.02)
    assert [d.spread for d in drifts] == pytest.approx([1, 1, 1.5], abs=1e-4)
    text = drift.describe(drifts)
    assert "window 1, from frame 33: shift 0.3" in text and "spread 1.500" in text.splitlines()[-1]
    picture = drift.draw(drifts)
    assert picture.shape == (1, 200, 480, 3) and 0 <= picture.min() < picture.max() <= 1
    assert not torch.equal(picture, drift.draw(drifts[:1] * 3))
