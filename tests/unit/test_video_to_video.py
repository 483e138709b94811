"""A film from a source film: every window begins part of the way to noise."""

import dataclasses

import pytest
import torch

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.plan.windows import Run
from skyreels_model.rollout import Film, SeededNoise, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.history import latent_history
from skyreels_model.schedule import flow_schedule

PLAN = FilmPlan(
    num_frames=61, width=16, height=16, window=33, overlap=9, steps=6, denoise=0.4, prefix_noise=0
)
SOURCE = torch.randn(1, 16, 16, 2, 2, generator=torch.Generator().manual_seed(0))


def run(plan, velocity, source=SOURCE):
    conditions = Conditions(source=source)
    film = Film(plan.fit(conditions.counts), conditions=conditions)
    history = latent_history(3)
    list(generate(velocity, film.plan, SeededNoise(1), history, film=film))
    return film


def own(film):
    pairs = zip(film.finished, film.plan.windows(), strict=True)
    return torch.cat([w[:, :, window.repeated :] for w, window in pairs], dim=2)


def test_steps_are_the_last_of_a_longer_schedule():
    whole, part = flow_schedule(15, 8.0), PLAN.schedule()
    assert part.steps == 6 and torch.equal(part.sigmas, whole.sigmas[-7:])
    assert torch.equal(part.timesteps, whole.timesteps[-6:])
    full = dataclasses.replace(PLAN, denoise=1.0).schedule()
    assert torch.equal(full.sigmas, flow_schedule(6, 8.0).sigmas)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("ar_step", [0, 2])
def test_every_frame_begins_at_its_sources_place_part_of_the_way(sliding, ar_step):
    if sliding and not ar_step:
        return
    plan = dataclasses.replace(PLAN, ar_step=ar_step, sliding=sliding)
    sigma, first = float(plan.schedule().sigmas[0]), int(plan.schedule().timesteps[0])
    seen = []

    def velocity(x, t):
        waiting = t[0] == first
        assert t.max() <= first  # no frame is told to be pure noise
        seen.append((x[0, :, waiting], waiting))
        return torch.zeros_like(x)

    film = run(plan, velocity)
    start, waiting = seen[0]
    places = waiting.nonzero()[:, 0]
    noise = (start - (1 - sigma) * SOURCE[0, :, places]) / sigma
    assert 0.85 < noise.std() < 1.15 and abs(noise.mean()) < 0.15
    assert own(film).shape == SOURCE.shape


def test_a_velocity_towards_the_source_gives_it_back_in_every_window():
    """The exact velocity of the path from noise to the source needs each frame's own level."""

    for plan in (PLAN, dataclasses.replace(PLAN, ar_step=3)):
        conditions = Conditions(source=SOURCE)
        film = Film(plan.fit(conditions.counts), solver="euler", conditions=conditions)

        def velocity(x, t, film=film):
            window = film.plan.window_at(film.window)
            target = SOURCE[:, :, window.start : window.start + window.length]
            sigmas, timesteps = film.plan.schedule().sigmas, film.plan.schedule().timesteps
            level = torch.zeros(t.shape[1])
            for step, timestep in enumerate(timesteps.tolist()):
                level[t[0] == timestep] = sigmas[step]
            return (x - target) / level.clamp_min(1e-3)[None, None, :, None, None]

        list(generate(velocity, film.plan, SeededNoise(1), latent_history(3), film=film))
        assert torch.allclose(own(film), SOURCE, atol=1e-4)


def test_sequences_of_a_storyboard_take_their_own_part_of_the_source():
    plan = dataclasses.replace(PLAN, shots=(Shot(30), Shot(31, cut=True)))
    assert list(plan.layout.runs()) == [Run(0, 0, 9, 30), Run(9, 30, 9, 31)]
    assert plan.latent_frames == 18


@pytest.mark.parametrize(
    ("plan", "source", "parts"),
    [
        (PLAN, None, ("denoise is 0.4", "no source")),
        (dataclasses.replace(PLAN, denoise=1.0), SOURCE, ("denoise is 1", "below 1")),
    ],
)
def test_source_and_denoise_go_together(plan, source, parts):
    with pytest.raises(ValueError) as error:
        plan.fit(Conditions(source=source).counts)
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("denoise", [0.0, -1.0, 1.5])
def test_denoise_out_of_range_is_told(denoise):
    with pytest.raises(ValueError, match="denoise is"):
        dataclasses.replace(PLAN, denoise=denoise)


def test_denoise_and_sigmas_contradict_each_other():
    with pytest.raises(ValueError, match="sigmas are given"):
        dataclasses.replace(PLAN, sigmas=(0.5, 0.0))
