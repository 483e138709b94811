"""Three ways over a seam, by a VAE of the golden data: what the next window is given."""

import dataclasses
import functools

import golden_data
import pytest
import torch
from golden_data import models

from skyreels_model.drift import anchor_colours, statistics
from skyreels_model.grid import frame_length, latent_length
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, SeededNoise, WindowDone, film_frames, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.film import Tail
from skyreels_model.rollout.frames import decode_latents
from skyreels_model.rollout.history import new_history
from skyreels_model.vae import denormalize_latents, normalize_latents
from toy.toyset import ToySet
from toy.world import COLOURS, Scene, render

PLAN = FilmPlan(num_frames=45, width=16, height=16, window=17, overlap=9, steps=2, prefix_noise=20)
# An overlap of 4 latents in windows of 5: each further window has fewer new frames than it repeats.
LITTLE_NEW = dataclasses.replace(PLAN, num_frames=30, overlap=13)
PLANS = pytest.mark.parametrize("plan", [PLAN, LITTLE_NEW], ids=["more new", "less new"])


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae():
    return models.vae()


@pytest.fixture(scope="module")
def toy():
    return ToySet.load()


def velocity(x, t):
    """A cheap field that couples all frames and depends on each frame's timestep."""
    return 0.7 * x - 0.2 * x.mean(dim=2, keepdim=True) + t[:, None, :, None, None] / 2000


@functools.cache
def made(plan, vae):
    """A finished film, and per seam (latents given to the next window, windows finished so far)."""
    film, seams = Film(plan), []
    for event in generate(velocity, plan, SeededNoise(1), new_history(plan, vae), film=film):
        if isinstance(event, WindowDone) and not film.done:
            seams.append((film.carried.clone(), list(film.finished)))
    assert seams
    return film, seams


def decoded(vae, latents):
    """A sequence decoded in one piece, (1, 3, T, H, W)."""
    return vae.decode(denormalize_latents(latents)).clamp(-1, 1)


def encoded(vae, frames):
    return normalize_latents(vae.encode(frames))


@functools.cache
def whole_windows(plan, vae):
    """The frames of each window of the plan's film, decoded whole."""
    return [decoded(vae, latents) for latents in made(plan, vae)[0].finished]


def frames_so_far(plan, vae, finished):
    """The film as a viewer has it: each window decoded whole, without what it repeats."""
    pieces = []
    for window, frames, _ in zip(plan.windows(), whole_windows(plan, vae), finished, strict=False):
        repeated = frame_length(window.repeated) if window.repeated else 0
        pieces.append(frames[:, :, repeated:])
    return torch.cat(pieces, dim=2)


def own_latents(plan, finished):
    """The sequence of latents without overlaps."""
    windows = zip(plan.windows(), finished, strict=False)
    return torch.cat([latents[:, :, w.repeated :] for w, latents in windows], dim=2)


@pytest.mark.slow
@PLANS
def test_pixels_are_the_films_last_frames_encoded(plan, vae):
    _, seams = made(plan, vae)
    for prefix, finished in seams:
        frames = frames_so_far(plan, vae, finished)[:, :, -plan.overlap :]
        assert prefix.shape[2] == latent_length(plan.overlap)
        assert golden_data.relative_l2(prefix, encoded(vae, frames)) < 1e-4


@PLANS
def test_latents_are_carried_as_they_are_and_the_film_is_one_stream(plan, vae):
    plan = dataclasses.replace(plan, history="latents")
    film, seams = made(plan, vae)
    for prefix, finished in seams:
        assert torch.equal(
            prefix, own_latents(plan, finished)[:, :, -latent_length(plan.overlap) :]
        )
    frames = torch.cat(list(film_frames(film, vae)), dim=2)
    whole = decoded(vae, own_latents(plan, film.finished))[:, :, : plan.num_frames]
    assert frames.shape[2] == plan.num_frames
    assert golden_data.relative_l2(frames, whole) < 1e-5


@pytest.mark.slow
@PLANS
def test_picture_and_latents_replace_the_first_alone(plan, vae):
    plan = dataclasses.replace(plan, history="picture+latents")
    film, seams = made(plan, vae)
    count = latent_length(plan.overlap)
    for prefix, finished in seams:
        carried = own_latents(plan, finished)[:, :, -count:]
        assert torch.equal(prefix[:, :, 1:], carried[:, :, 1:])
        first = frames_so_far(plan, vae, finished)[:, :, -plan.overlap][:, :, None]
        assert golden_data.relative_l2(prefix[:, :, :1], encoded(vae, first)) < 1e-4
        assert not torch.equal(prefix[:, :, :1], carried[:, :, :1])
    frames = torch.cat(list(film_frames(film, vae)), dim=2)
    expected = frames_so_far(plan, vae, film.finished)[:, :, : plan.num_frames]
    assert golden_data.relative_l2(frames, expected) < 1e-5


@pytest.mark.slow
@PLANS
@pytest.mark.parametrize("history", ["pixels", "picture+latents"])
@pytest.mark.parametrize("anchor", [0.5, 1.0])
def test_an_anchor_holds_the_frames_that_go_on_to_the_first_windows(plan, history, anchor, vae):
    plan = dataclasses.replace(plan, history=history, anchor=anchor)
    _, seams = made(plan, vae)
    changed = []
    for prefix, finished in seams:
        first = statistics(whole_windows(plan, vae)[0])
        frames = frames_so_far(plan, vae, finished)[:, :, -plan.overlap :]
        held = anchor_colours(frames, first, anchor).clamp(-1, 1)
        count = plan.overlap if history == "pixels" else 1
        free, given = encoded(vae, frames[:, :, :count]), encoded(vae, held[:, :, :count])
        shown = prefix[:, :, : given.shape[2]]
        assert golden_data.relative_l2(shown, given) < 1e-4
        changed.append(golden_data.relative_l2(shown, free))
    assert min(changed) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("ground", ["black", "white"])
@pytest.mark.parametrize(("colour", "turned"), [("red", "yellow"), ("blue", "green")])
def test_a_figure_whose_hue_turned_goes_on_in_its_own(toy, ground, colour, turned):
    """Through the toy set's VAE; without an anchor it goes on in the other."""
    seen = {}
    first, second = (
        toy.latents(render(Scene(name, "circle", ground, "right"), 33, start=(x, 16)))
        for name, x in ((colour, 6), (turned, 8))
    )
    for anchor in (0.0, 1.0):
        plan = dataclasses.replace(PLAN, window=33, overlap=17, anchor=anchor)
        history = new_history(plan, toy.vae)
        _, tail = history(first, 0, Tail())
        given, _ = history(second, 5, tail)
        frames = decoded(toy.vae, given)[0, :, 8, 14:18].flatten(1)  # of rows with the figure
        away = (frames - frames[:, :1]).abs().sum(dim=0)
        seen[anchor] = (frames[:, away > 0.8 * away.max()].median(dim=1).values + 1) / 2
    own, other = torch.tensor(COLOURS[colour]), torch.tensor(COLOURS[turned])
    assert (seen[0.0] - other).abs().max() < 0.1 and (seen[1.0] - own).abs().max() < 0.1


def test_backwards_the_frames_are_held_to_those_of_the_window_made_first(vae):
    given = Conditions(following=SeededNoise(5).initial(0, (1, 16, 2, 2, 2)))
    plan = dataclasses.replace(PLAN, history="pixels", anchor=1.0).fit(given.counts)
    history = new_history(plan, vae)
    first, second = (SeededNoise(seed).initial(0, (1, 16, 7, 2, 2)) for seed in (1, 2))
    # Its own frames: the two latents behind them are those of the film that follows.
    tail, colours = Tail(), statistics(decoded(vae, first[:, :, :-2]))
    for whole in (first, second):
        shown, tail = history(whole, 0, tail)
        frames = anchor_colours(decoded(vae, whole[:, :, :3]), colours, 1.0).clamp(-1, 1)
        assert golden_data.relative_l2(shown, encoded(vae, frames)[:, :, 1:]) < 1e-4
        assert tail.frames is None and torch.allclose(tail.colours, colours, atol=1e-5)


def test_a_cut_forgets_the_colours(vae):
    shots = (Shot(29), Shot(29, cut=True))
    plan = dataclasses.replace(PLAN, num_frames=58, anchor=1.0, shots=shots)
    film, cuts = Film(plan), 0
    for event in generate(velocity, plan, SeededNoise(1), new_history(plan, vae), film=film):
        if isinstance(event, WindowDone) and not film.done:
            cut = plan.window_at(film.window).repeated == 0
            assert (film.tail.colours is None) is cut
            cuts += cut
    assert cuts == 1


@PLANS
@pytest.mark.parametrize("history", ["pixels", "latents", "picture+latents"])
def test_the_next_window_begins_with_what_it_was_given(plan, history, vae):
    film, seams = made(dataclasses.replace(plan, history=history), vae)
    for (prefix, _), latents in zip(seams, film.finished[1:], strict=True):
        assert torch.equal(latents[:, :, : prefix.shape[2]], prefix)


@pytest.mark.slow
@pytest.mark.parametrize("history", ["pixels", "latents", "picture+latents"])
def test_no_more_is_kept_of_a_film_than_its_overlap(history, vae):
    plan = dataclasses.replace(PLAN, num_frames=77, history=history)
    film = Film(plan)
    run = generate(velocity, plan, SeededNoise(1), new_history(plan, vae), film=film)
    kept = [film.tail for event in run if isinstance(event, WindowDone) and not film.done]
    assert len(kept) > 3 and film.tail == Tail()
    frames, latents, colours = dataclasses.astuple(kept[-1])
    assert (frames is not None, latents is not None) == (history != "latents", history != "pixels")
    assert colours is None
    assert frames is None or frames.shape[2] == plan.overlap
    assert latents is None or latents.shape[2] == latent_length(plan.overlap)
    for kept in (frames, latents):
        assert kept is None or kept.untyped_storage().nbytes() == kept.nbytes


def test_only_latents_can_do_without_a_vae(vae):
    for history in ("pixels", "picture+latents"):
        assert new_history(dataclasses.replace(PLAN, history=history), None) is None
    plan = dataclasses.replace(PLAN, history="latents")
    film, without = Film(plan), Film(plan)
    for one, some in ((film, vae), (without, None)):
        list(generate(velocity, plan, SeededNoise(1), new_history(plan, some), film=one))
    assert all(map(torch.equal, film.finished, without.finished))


def test_latents_are_decoded_one_by_one(vae):
    latents = SeededNoise(2).initial(0, (1, 16, 5, 2, 2))
    pieces = list(decode_latents(vae, latents))
    assert [piece.shape[2] for piece in pieces] == [1, 4, 4, 4, 4]
    assert golden_data.relative_l2(torch.cat(pieces, dim=2), decoded(vae, latents)) < 1e-5
