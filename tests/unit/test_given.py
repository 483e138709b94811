"""What a film is given: counted, its places found once, brought to size where it is looked at."""

import pytest
import torch

from skyreels_model.framing import FramedFilm, fit_image, resample
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.given import Given
from skyreels_model.rollout import Film, SeededNoise, WindowDone, generate
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.finite import FiniteVelocity
from skyreels_model.rollout.history import new_history

PLAN = FilmPlan(num_frames=41, width=16, height=16, window=17, overlap=9, steps=3)


def test_frames_and_latents_are_given_in_the_same_places():
    """By frames, as a person gives them, or by latents, as a program has them."""
    latents = torch.zeros(1, 16, 1, 2, 2)
    by_latents = Conditions(start=latents, pictures={3: latents}, end=latents).counts
    assert PLAN.fit(by_latents) == PLAN.fit(Given(start=1, key_frames=(9,), end=True))


def test_a_film_to_extend_gives_the_latents_of_the_overlap():
    assert PLAN.fit(Given(video=20)).start == 3


def test_a_film_to_lead_into_is_shown_as_far_as_there_is_room():
    assert PLAN.fit(Given(following_frames=20)).following == 2
    assert PLAN.fit(Given(video=20, following_frames=20)).following == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Given(video=8), "video has 8 frames; the film continues its last 9"),
        (Given(following_frames=8), "prepend_to has 8 frames"),
        (Given(source=41), "denoise is 1"),
        (Given(key_frames=(41,)), "key frame is at frame 41"),
        (Given(key_frames=(7, 8)), "frames 7 and 8"),
    ],
)
def test_what_has_no_place_is_refused(given, says):
    with pytest.raises(ValueError, match=says):
        PLAN.fit(given)


def test_only_the_frames_that_are_looked_at_are_fitted():
    film = FramedFilm(torch.rand(40, 20, 50, 3), 32, 32)
    whole = torch.cat(list(film.pieces()))
    assert len(film) == 40 and whole.shape == (40, 32, 32, 3)
    assert torch.equal(film.cut(37), whole[37:]) and torch.equal(film.cut(3, 5), whole[3:5])
    # What is not looked at may be anything.
    film.images[:30] = torch.nan
    assert torch.equal(film.cut(37), whole[37:])


@pytest.mark.parametrize(
    ("count", "rate", "fps", "places"),
    [
        (4, 24, 24, [0, 1, 2, 3]),
        (3, 12, 24, [0, 1, 1, 2, 2]),
        (9, 60, 24, [0, 3, 5, 8]),
        (1, 10, 24, [0]),
        (4, 1000, 24, [0]),
        (3, 10, 24, [0, 0, 1, 1, 2]),
    ],
)
def test_frames_of_another_rate_are_those_nearest_in_time(count, rate, fps, places):
    assert list(resample(count, rate, fps)) == places
    # From the end, where the film goes on, its last frame is shown last.
    assert list(resample(count, rate, fps, from_end=True)) == [count - 1 - p for p in places[::-1]]


def test_a_clip_of_places_is_cut_by_them():
    film = FramedFilm(torch.rand(5, 32, 32, 3), 32, 32, places=(0, 2, 2, 4))
    assert len(film) == 4 and torch.equal(film.cut(1, 3), film.images[[2, 2]])
    assert torch.equal(torch.cat(list(film.pieces())), film.images[[0, 2, 2, 4]])


@pytest.mark.parametrize("size", [(32, 32), (20, 50)])
def test_all_images_are_clamped_whatever_their_size(size):
    image = torch.full((*size, 3), 4.0)
    image[: size[0] // 2] = -1.0
    for fit in ("crop", "pad"):
        for kernel in ("lanczos", "bicubic"):
            fitted = fit_image(image, 32, 32, fit, kernel)
            assert fitted.min() == 0 and fitted.max() == 1
    assert (FramedFilm(image[None], 32, 32).cut()[0] == 1).any()


@pytest.mark.parametrize("kernel", ["lanczos", "bicubic"])
def test_an_image_of_more_than_8_bits_keeps_them(kernel):
    """A slope finer than 8 bits; of 8 bits it is the reference's image."""
    slope = torch.linspace(0.4, 0.41, 200)[None, :, None].expand(60, 200, 3)
    fitted = fit_image(slope, 64, 16, "crop", kernel)
    assert len(fitted[8, :, 0].unique()) == 64
    coarse = fit_image((slope * 255).round() / 255, 64, 16, "crop", kernel)
    assert len(coarse.unique()) <= 4
    assert (fitted - coarse).abs().max() < 1.5 / 255
    levels = coarse * 255
    assert (levels - levels.round()).abs().max() < 1e-4


def broken(call):
    """A velocity whose answer number `call` is not finite in one place."""
    numbers = iter(range(1, 1000))

    def velocity(x, t):
        v = 0.1 * x
        if next(numbers) == call:
            v[0, 0, -1, 0, 0] = torch.inf
        return v

    return velocity


@pytest.mark.parametrize("sliding", [False, True])
def test_a_velocity_that_is_not_finite_ends_the_film_in_its_row(sliding):
    changes = {"sliding": True, "ar_step": 1} if sliding else {"history": "latents"}
    plan = FilmPlan(num_frames=41, width=16, height=16, window=17, overlap=9, steps=3, **changes)
    film, done = Film(plan), []
    history = new_history(plan, None)
    with pytest.raises(ValueError, match="infinite or not a number") as error:
        for event in generate(broken(5), plan, SeededNoise(0), history, film=film):
            done.append(event)
    place = "window 1 of 1, model call 5" if sliding else "window 2 of 4, model call 2"
    assert place in str(error.value)
    rows = [event for event in done if not isinstance(event, WindowDone)]
    assert len(rows) == 4
    if not sliding:
        assert len(film.finished) == 1 and film.finished[0].isfinite().all()


def test_the_last_answer_of_a_device_that_is_not_waited_for_is_read():
    film = Film(PLAN)
    velocity = FiniteVelocity(film, lambda x, t: x)
    velocity.pending = lambda: False
    with pytest.raises(ValueError, match="infinite"):
        velocity.read()
    velocity.read()  # asked once
