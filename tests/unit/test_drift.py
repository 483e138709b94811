"""Colour drift: told, held back while a film is made, and nothing else is touched."""

import dataclasses

import pytest
import torch

from skyreels_model import drift
from skyreels_model.drift.colours import RIDGE
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.rollout.history import latent_history

PLAN = FilmPlan(num_frames=145, width=16, height=16, window=17, overlap=9, steps=4, prefix_noise=0)


def noise(seed, frames=5, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, frames, 4, 4, generator=generator) * scale + shift


def mixed(seed, frames=5):
    """Latents whose channels go together in some way of their own."""
    mixing = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed + 100)) / 4
    mixing += torch.eye(16)
    return torch.einsum("ij,bjfhw->bifhw", mixing, noise(seed, frames, shift=0.5))


def measured(latents, reference, start=0):
    return drift.measure(start, drift.statistics(latents), reference)


def test_statistics_are_those_of_the_channels():
    x = mixed(0)
    found = drift.statistics(x)
    assert found.shape == (17, 16)
    flat = x[0].flatten(1)
    assert torch.allclose(found[0], flat.mean(1), atol=1e-6)
    assert torch.allclose(found[1:], torch.cov(flat, correction=0), atol=1e-5)


def test_statistics_of_parts_pool_to_those_of_the_whole():
    whole = mixed(3, frames=6)
    parts = [(part.shape[2], drift.statistics(part)) for part in whole.split([1, 3, 2], dim=2)]
    assert torch.allclose(drift.pool_statistics(parts), drift.statistics(whole), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_anchored_latents_have_the_references_statistics_and_their_own_motion(dtype):
    x, reference = mixed(0).to(dtype), drift.statistics(mixed(1))
    exact = dtype == torch.float32
    assert torch.allclose(drift.anchor_colours(x, reference, 0.0), x, atol=1e-5)
    whole = drift.anchor_colours(x, reference, 1.0)
    assert whole.dtype == dtype
    found, wanted = drift.statistics(whole), reference
    assert torch.allclose(found[0], wanted[0], atol=1e-5 if exact else 0.01)
    # Equal with the ridge on both, which keeps directions without contrast from being blown up.
    matrix, _ = drift.transport(drift.statistics(x), reference, 1.0)
    ridge = RIDGE * wanted[1:].diagonal().mean()
    left, right = found[1:] + ridge * matrix @ matrix.T, wanted[1:] + ridge * torch.eye(16)
    assert torch.allclose(left, right, atol=1e-4 if exact else 0.03)
    half = drift.anchor_colours(x, reference, 0.5).float()
    assert torch.allclose(half, (x.float() + whole.float()) / 2, atol=1e-5 if exact else 0.03)


def test_a_turned_hue_is_turned_back():
    """Which means and deviations of the channels alone do not see."""
    reference = noise(0).clone()
    reference[:, 1] = reference[:, 0]
    turned = reference.clone()
    turned[:, 1] = 2 * turned[:, 1].mean() - turned[:, 1]
    before = measured(turned, drift.statistics(reference))
    assert before.shift < 1e-6 and before.spread == pytest.approx(1, abs=1e-6)
    assert before.distance > 0.1
    held = drift.anchor_colours(turned, drift.statistics(reference), 1.0)[0].flatten(1)
    assert torch.corrcoef(turned[0].flatten(1))[0, 1] < -0.99
    assert torch.corrcoef(held)[0, 1] > 0.9


def test_the_least_change_that_does_it():
    """Of all maps with that result, the symmetric one; none where nothing has to change."""
    own, reference = drift.statistics(mixed(0)), drift.statistics(mixed(1))
    matrix, _ = drift.transport(own, reference, 1.0)
    assert torch.allclose(matrix, matrix.T, atol=1e-5) and torch.linalg.eigvalsh(matrix).min() > 0
    matrix, shift = drift.transport(own, own, 1.0)
    assert torch.allclose(matrix, torch.eye(16), atol=1e-5) and shift.abs().max() < 1e-5


def test_channels_without_contrast_stay_finite_and_small():
    flat, reference = torch.zeros(1, 16, 2, 4, 4), drift.statistics(noise(1))
    held = drift.anchor_colours(flat, reference, 1.0)
    assert torch.allclose(held[0].flatten(1), reference[0][:, None], atol=1e-5)
    faint = noise(2, scale=1e-3)
    held = drift.statistics(drift.anchor_colours(faint, reference, 1.0))
    assert held[1:].diagonal().sqrt().max() < 0.02
    assert drift.anchor_colours(noise(2), drift.statistics(flat), 1.0).abs().max() < 1e-3


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
    drifts = [measured(window, reference).shift for window in free]
    assert drifts[0] == 0 and drifts == sorted(drifts) and drifts[-1] > 1
    held, reference = film_of(dataclasses.replace(PLAN, anchor=1.0))
    assert all(measured(window, reference).shift < 1e-4 for window in held)
    half, reference = film_of(dataclasses.replace(PLAN, anchor=0.5))
    assert 0.01 < measured(half[-1], reference).shift < drifts[-1] / 4
    assert torch.equal(free[0], held[0])


def test_a_cut_begins_afresh():
    shots = (Shot(49), Shot(96, cut=True))
    held, _ = film_of(dataclasses.replace(PLAN, anchor=1.0, shots=shots))
    first = next(w.index for w in dataclasses.replace(PLAN, shots=shots).windows() if w.shot == 1)
    reference = drift.statistics(held[first])
    assert not torch.allclose(reference, drift.statistics(held[0]), atol=1e-3)
    assert all(measured(w, reference).shift < 1e-4 for w in held[first:])


def test_strength_out_of_range_is_told():
    with pytest.raises(ValueError, match="anchor is 1.5; it must be 0 to 1; nearest: 1"):
        dataclasses.replace(PLAN, anchor=1.5)


def test_meter_tells_and_draws():
    reference = drift.statistics(noise(0))
    windows = [noise(0), noise(0, shift=0.3), noise(0, scale=1.5)]
    drifts = [measured(w, reference, 33 * i) for i, w in enumerate(windows)]
    assert [d.distance for d in drifts] == pytest.approx([0, 0.3, 0.5], abs=0.02)
    assert drifts[0].shift < 1e-5 and drifts[1].shift == pytest.approx(0.3, abs=0.02)
    assert [d.spread for d in drifts] == pytest.approx([1, 1, 1.5], abs=1e-4)
    text = drift.describe(drifts)
    assert "window 1, from frame 33: shift 0.3" in text
    assert "spread 1.500, distance 0.5" in text.splitlines()[-1]
    picture = drift.draw(drifts)
    assert picture.shape == (1, 200, 480, 3) and 0 <= picture.min() < picture.max() <= 1
    assert not torch.equal(picture, drift.draw(drifts[:1] * 3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_what_cannot_be_measured_is_said_and_loses_no_film(value):
    """1e38 is a number, but its square is none in float32."""
    bad = noise(1)
    bad[0, 3, 1, 2, 2] = value
    reference = drift.statistics(noise(0))
    drifts = [
        measured(noise(0), reference),
        measured(bad, reference, 5),
        measured(noise(0, shift=0.3), reference, 9),
        measured(noise(0), drift.statistics(bad), 13),
    ]
    assert [one.measured for one in drifts] == [True, False, True, False]
    lines = drift.describe(drifts).splitlines()
    assert "window 1, from frame 5: cannot be measured" in lines[1]
    assert lines[-1].startswith("worst: shift 0.3") and "nan" not in "".join(lines)
    picture = drift.draw(drifts)
    assert picture.isfinite().all() and not torch.equal(picture, drift.draw(drifts[:1]))
    assert drift.draw(drifts[1:2]).isfinite().all()
    assert "worst" not in drift.describe(drifts[1:2])
    with pytest.raises(ValueError, match="own colours are infinite or not a number"):
        drift.transport(drift.statistics(bad), reference, 1.0)
