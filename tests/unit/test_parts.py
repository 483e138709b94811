"""The one road from finished latents to frames: stretches, what a film's record says, trimming."""

import dataclasses
import pathlib

import pytest
import torch
from golden_data import models

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, SeededNoise, film_frames, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.frames import decode_latents
from skyreels_model.rollout.history import new_history
from skyreels_model.rollout.parts import (
    Stretch,
    bind_parts,
    decode_stretches,
    describe_film,
    film_stretches,
    fingerprint,
    one_window,
    trim,
)

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAN = FilmPlan(num_frames=42, width=16, height=16, window=17, overlap=9, steps=2, prefix_noise=0)
PICTURE = Conditions(end=torch.ones(1, 16, 1, 2, 2))
FOLLOWING = Conditions(following=torch.ones(1, 16, 2, 2, 2))
SHOTS = (Shot(20), Shot(22, cut=True))
PLANS = {
    "pixels": PLAN,
    "latents": dataclasses.replace(PLAN, history="latents"),
    "picture": dataclasses.replace(PLAN, history="picture+latents"),
    "cut": dataclasses.replace(PLAN, shots=SHOTS),
    "cut latents": dataclasses.replace(PLAN, shots=SHOTS, history="latents"),
    "sliding": dataclasses.replace(PLAN, sliding=True, ar_step=1, steps=4),
}


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae():
    return models.small_vae()


def make(plan, vae, given=None):
    """A finished film of a cheap velocity."""
    given = given or Conditions()
    film = Film(plan.fit(given.counts), conditions=given)
    history = new_history(film.plan, vae)
    list(generate(lambda x, t: 0.7 * x, film.plan, SeededNoise(1), history, film=film))
    return film


def watch(pieces):
    return torch.cat(list(pieces), dim=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"),
    [*((name, None) for name in PLANS), ("pixels", PICTURE), ("pixels", FOLLOWING)],
    ids=[*PLANS, "end picture", "backwards"],
)
def test_a_films_record_decodes_to_the_films_frames(vae, name, given):
    """As latents in one tensor, which a host passes on, and as windows, which a loop makes."""
    film = make(PLANS[name], vae, given)
    samples, parts = describe_film(film)
    stretches = parts.stretches(samples)
    found = watch(decode_stretches(stretches, lambda latents: decode_latents(vae, latents)))
    wanted = watch(film_frames(film, vae))
    assert wanted.shape[2] == film.plan.num_frames
    assert torch.equal(found, wanted)
    assert [span.stop for span in parts.spans][-1] == samples.shape[2] == film.plan.latent_frames


def test_each_window_comes_as_soon_as_it_is_made(vae):
    """So that a film may be written to a file while it is made, or from windows on a disk."""
    film, asked = make(PLAN, vae), []

    def finished():
        for index, latents in enumerate(film.finished):
            asked.append(index)
            yield latents

    for number, stretch in enumerate(film_stretches(PLAN, finished())):
        assert asked[-1] == number and stretch.latents is film.finished[number]


def test_a_film_that_is_not_finished_is_decoded_as_far_as_it_goes(vae):
    for name in ("pixels", "latents"):
        film = make(PLANS[name], vae)
        whole = watch(film_frames(film, vae))
        film.finished.pop()
        begun = watch(film_frames(film, vae))
        assert 0 < begun.shape[2] < whole.shape[2]
        assert torch.equal(begun, whole[:, :, : begun.shape[2]])


def test_an_extended_clip_is_left_out(vae):
    start = SeededNoise(3).initial(0, (1, 16, 3, 2, 2))
    film = make(PLAN, vae, Conditions(start=start))
    clip = torch.zeros(9, 16, 16, 3)
    samples, parts = describe_film(film, before=clip)
    assert torch.equal(parts.seams[0].given, start) and parts.before is clip
    assert sum(seam.frames for seam in parts.seams) == PLAN.num_frames - 9
    decode = lambda latents: decode_latents(vae, latents)  # noqa: E731
    found = watch(decode_stretches(parts.stretches(samples), decode))
    assert torch.equal(found, watch(film_frames(film, vae))[:, :, 9:])


@pytest.mark.parametrize("skip", range(7))
@pytest.mark.parametrize("frames", [None, 0, 1, 4, 5])
def test_trim(skip, frames):
    video = torch.arange(9).view(1, 1, 9, 1, 1)
    pieces, asked = video.split([1, 4, 4], dim=2), []
    shown = list(trim((asked.append(piece) or piece for piece in pieces), skip, frames))
    stop = None if frames is None else skip + frames
    wanted = video[:, :, skip:stop]
    assert all(piece.shape[2] for piece in shown)
    assert torch.equal(torch.cat([video[:, :, :0], *shown], dim=2), wanted)
    # What comes after the last frame is not decoded.
    needed = {None: 3, 0: 0}.get(frames, 1 + (skip + (frames or 0) + 2) // 4)
    assert len(asked) == min(needed, 3)


def test_a_fingerprint_is_of_every_number_and_of_nothing_else():
    x = torch.randn(1, 16, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    own = fingerprint(x)
    assert own == fingerprint(x.clone()) == fingerprint(x.double())
    assert own == fingerprint(torch.cat([x, x], dim=2)[:, :, :5])  # whatever the layout
    changed = x.clone()
    changed[0, 7, 4, 3, 3] += 1e-3
    others = [changed, x.flip(2), x.transpose(3, 4), x.view(1, 16, 5, 2, 8), x.roll(1, 3)]
    assert len({own, *map(fingerprint, others)}) == 1 + len(others)


def test_only_a_single_stretch_without_gifts_follows_from_its_shape():
    x = torch.zeros(1, 16, 4, 2, 2)
    single = one_window(x, 11)
    assert single.simple and single.seams[0].frames == 11
    (seam,) = single.seams
    given = dataclasses.replace(seam, given=x[:, :, :1])
    clip = torch.zeros(5, 16, 16, 3)
    assert not bind_parts(x, [given], single.spans).simple
    assert not bind_parts(x, [seam, dataclasses.replace(seam, start=2)], single.spans).simple
    assert not bind_parts(x, [seam], single.spans, before=clip).simple
    assert not bind_parts(x, [seam], single.spans, after=clip).simple


def test_a_stretch_of_which_nothing_is_shown_is_not_decoded():
    def decode(latents):
        raise AssertionError("decoded")
        yield

    stretch = Stretch(torch.zeros(1, 16, 2, 2, 2), given=1, skip=1, frames=0)
    assert not list(decode_stretches([stretch], decode))


def test_the_host_does_not_know_how_windows_join():
    for path in sorted((ROOT / "nodes").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "new_frames(" not in text and ".repeated" not in text, path
