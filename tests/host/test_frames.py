"""Films from pictures and from other films, in the host: start, end, keys, video, loop."""

import dataclasses
import functools
import logging

import graphs
import pytest
import torch
from PIL import Image, ImageDraw

from skyreels_model.framing import fit_image
from skyreels_model.grid import latent_length

# The least that the model takes, where what is shown does not matter, and what the toys can show.
SIDE, READ = 16, (32, 32)
small_film = functools.partial(graphs.film, width=SIDE, height=SIDE)
SIZES = [(SIDE, SIDE), (32, 24), (20, 50)]
pytestmark = pytest.mark.usefixtures("kept_loaders")


@pytest.fixture(scope="module", autouse=True)
def pictures(host):
    """Circles on a background in the host's input folder, by size and colour."""
    import folder_paths

    for width, height in (*SIZES, READ):
        for colour in ("red", "blue"):
            image = Image.new("RGB", (width, height), "white")
            x, y, radius = width / 2, height / 2, min(width, height) / 5
            box = (x - radius, y - radius, x + radius, y + radius)
            ImageDraw.Draw(image).ellipse(box, fill=colour)
            image.save(f"{folder_paths.get_input_directory()}/{name(colour, (width, height))}")


def name(colour, size):
    return f"{colour}_{size[0]}x{size[1]}.png"


def with_frames(prompt, picture=SIZES[0], **inputs):
    """The film with a red picture "10", a blue one "11", both as a batch "12", and Frames "13"."""
    prompt["10"] = graphs.node("LoadImage", image=name("red", picture))
    prompt["11"] = graphs.node("LoadImage", image=name("blue", picture))
    prompt["12"] = graphs.node("ImageBatch", image1=["10", 0], image2=["11", 0])
    prompt["13"] = graphs.node("SkyReelsV2Frames", schedule=["5", 0], **inputs)
    prompt["6"]["inputs"]["frames"] = ["13", 0]
    return prompt


def with_video(prompt, size=SIZES[0], length=20, **inputs):
    """The film going on from `length` frames "14" of noise on a picture."""
    prompt = with_frames(prompt, size, video=["14", 0], **inputs)
    prompt["15"] = graphs.node("RepeatImageBatch", image=["10", 0], amount=length)
    prompt["14"] = graphs.node("ImageAddNoise", image=["15", 0], seed=4, strength=0.2)
    return prompt


def coded(prompt, image):
    """Core's nodes "30" and "31": an image through the VAE."""
    prompt["30"] = graphs.node("VAEEncode", pixels=image, vae=["3", 0])
    prompt["31"] = graphs.node("VAEDecode", samples=["30", 0], vae=["3", 0])
    return ["31", 0]


START, END, KEYS = {"start_image": ["10", 0]}, {"end_image": ["11", 0]}, {"key_images": ["12", 0]}
WAYS = {
    "start": (START, 1),
    "end": (END, 1),
    "keys": ({**KEYS, "key_seconds": "0.4, 0.9"}, 2),
    "loop": ({**START, "loop": True}, 2),
    "all": ({**START, **END, **KEYS, "key_seconds": "0.9 0.4"}, 4),
}


@pytest.fixture(scope="module")
def without(look):
    """`without(**numbers)` -> the frames of the film without pictures, made once."""
    return functools.cache(lambda **numbers: look(small_film(**numbers), frames=["7", 0])[0])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("frames", "fps"), [(17, 16), (30, 24)])
def test_film_has_exactly_its_frames_and_is_not_the_one_without_pictures(
    look, without, way, frames, fps
):
    inputs, count = WAYS[way]
    plain = without(frames=frames, fps=fps)
    prompt = with_frames(small_film(frames=frames, fps=fps), **inputs)
    film, latent, preview = look(prompt, frames=["7", 0], latent=["6", 0], preview=["13", 1])
    assert film.shape == plain.shape == (frames, SIDE, SIDE, 3)
    assert latent["samples"].shape[2] == latent_length(frames)
    assert preview.shape == (count, SIDE, SIDE, 3)
    assert (film - plain).abs().max() > 1e-2


def test_preview_is_in_the_films_order(look):
    inputs, _ = WAYS["all"]
    preview, red, blue = look(
        with_frames(small_film(frames=30), **inputs),
        preview=["13", 1], red=["10", 0], blue=["11", 0],
    )  # fmt: skip
    # The first key image is for second 0.9, the other one for 0.4.
    assert torch.equal(preview, torch.cat([red, blue, red, blue]))


@pytest.mark.parametrize("frames", [1, 5])
def test_shortest_films(look, frames):
    (film,) = look(with_frames(small_film(frames=frames), **END), frames=["7", 0])
    assert len(film) == frames


@pytest.mark.parametrize("history", ["pixels", "latents", "picture+latents"])
@pytest.mark.parametrize("rhythm", [{}, {"ar_step": 2, "block_size": 3}])
def test_film_begins_with_the_start_image(look, history, rhythm):
    prompt = with_frames(graphs.film(frames=30, history=history, **rhythm), READ, **START)
    seen = coded(prompt, ["10", 0])
    film, image, through = look(prompt, film=["7", 0], image=["10", 0], through=seen)
    assert len(film) == 30
    # Not quite the image, but the image as the VAE can show it.
    assert (film[0] - through[0]).abs().max() < 1e-3
    assert (film[0] - image[0]).abs().mean() < 0.08


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_pictures_of_other_sizes_are_fitted(look, size, fit):
    prompt = with_frames(small_film(), size, fit=fit, **START)
    film, image, preview, through = look(
        prompt,
        film=["7", 0], image=["10", 0], preview=["13", 1], through=coded(prompt, ["13", 1]),
    )  # fmt: skip
    assert image.shape[1:3] == size[::-1] and preview.shape == (1, SIDE, SIDE, 3)
    assert torch.equal(preview[0], fit_image(image[0], SIDE, SIDE, fit, "bicubic"))
    assert len(film) == 17 and (film[0] - through[0]).abs().max() < 1e-3


@pytest.mark.parametrize("numbers", [(96, 64), (32, 64)])
def test_films_of_other_proportions(look, numbers):
    width, height = numbers
    prompt = with_frames(graphs.film(width=width, height=height, steps=1), **START)
    film, preview = look(prompt, film=["7", 0], preview=["13", 1])
    assert film.shape == (17, height, width, 3) and preview.shape == (1, height, width, 3)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("frames", "history"), [(17, "pixels"), (30, "pixels"), (40, "latents")])
def test_film_goes_on_from_a_video_which_stays_as_it_is(look, size, frames, history):
    prompt = with_video(small_film(frames=frames, history=history), size)
    film, video, preview = look(prompt, film=["7", 0], video=["14", 0], preview=["13", 1])
    fitted = torch.stack([fit_image(one, SIDE, SIDE, "crop", "bicubic") for one in video])
    assert len(film) == 20 + frames - 9
    assert torch.equal(film[:20], fitted) and torch.equal(preview, fitted[-1:])


def test_continued_frames_depend_on_the_overlap_alone(look):
    long, short = (
        look(with_video(small_film(frames=30), length=n), film=["7", 0])[0] for n in (20, 9)
    )
    assert len(long) == 41 and len(short) == 30
    # Noise is drawn over the batch, so the shorter video is not the longer one's end.
    assert not torch.equal(long[20:], short[9:])
    prompt = with_video(small_film(frames=30), length=20)
    prompt["16"] = graphs.node("ImageFromBatch", image=["14", 0], batch_index=11, length=9)
    prompt["13"]["inputs"]["video"] = ["16", 0]
    (end,) = look(prompt, film=["7", 0])
    assert len(end) == 30 and torch.equal(end, long[11:])


def test_half_precision_of_a_video_is_not_the_new_frames(look):
    """As a program or another node may give it."""
    prompt = with_video(small_film(frames=17))
    video, latent, vae = look(prompt, video=["14", 0], latent=["6", 0], vae=["3", 0])
    import nodes

    latent["skyreels_v2_film"] = dataclasses.replace(
        latent["skyreels_v2_film"], before=video.bfloat16()
    )
    (film,) = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2Decode"].execute(latent, vae).result
    assert film.dtype == torch.float32 and torch.equal(film[:20], video.bfloat16().float())
    assert not torch.equal(film[20:], film[20:].bfloat16().float())


def with_following(prompt, size=SIZES[0], length=20, **inputs):
    """The film leading up to `length` frames "14" of noise on a picture."""
    prompt = with_video(prompt, size, length)
    prompt["13"]["inputs"] = {"schedule": ["5", 0], "prepend_to": ["14", 0], **inputs}
    return prompt


@pytest.mark.parametrize(
    ("frames", "window", "history"),
    [
        (5, 17, "pixels"),
        (16, 17, "latents"),
        (30, 17, "pixels"),
        (30, 33, "picture+latents"),
        (30, 17, "latents"),
    ],
)
def test_film_leads_up_to_another_which_stays_as_it_is(look, history, frames, window):
    graph = small_film(frames=frames, window=window, history=history)
    prompt = with_following(graph, SIZES[1])
    film, video, preview, plan = look(
        prompt, film=["7", 0], video=["14", 0], preview=["13", 1], plan=["13", 0]
    )
    fitted = torch.stack([fit_image(one, SIDE, SIDE, "crop", "bicubic") for one in video])
    assert len(film) == frames + 20 and plan.following is not None
    assert torch.equal(film[frames:], fitted) and torch.equal(preview, fitted[:1])
    # A longer film ends like the shorter one.
    prompt["5"]["inputs"]["frames"] = frames + 24
    if frames == 30 and window == 17:
        longer = look(prompt, film=["7", 0])[0]
        assert torch.equal(longer[-24:], film[-24:])


@pytest.mark.parametrize(
    ("frames", "start", "sliding"),
    [
        (17, "video", False),
        (18, "start_image", False),
        (19, "video", True),
        (20, "video", False),
        (41, "video", False),
        (40, "start_image", True),
    ],
)
def test_film_between_two_others(look, frames, start, sliding):
    rhythm = {"ar_step": 3, "window": 17} if sliding else {}
    prompt = with_following(small_film(frames=frames, sliding=sliding, **rhythm))
    prompt["13"]["inputs"][start] = ["17", 0]
    count = 12 if start == "video" else 1
    prompt["17"] = graphs.node("RepeatImageBatch", image=["11", 0], amount=count)
    film, first, behind = look(prompt, film=["7", 0], first=["17", 0], behind=["14", 0])
    made = frames - 9 if start == "video" else frames
    before = 12 if start == "video" else 0
    assert len(film) == before + made + 20 and torch.equal(film[before + made :], behind)
    assert torch.equal(film[:before], first[:before])
    del prompt["13"]["inputs"]["prepend_to"]
    other = look(prompt, film=["7", 0])[0]
    assert not torch.equal(other[before : before + made], film[before : before + made])


def test_key_images_of_a_film_that_is_made_backwards(look):
    def prompt(**inputs):
        return with_following(small_film(frames=40, fps=16), **inputs)

    plain = look(prompt(), film=["7", 0])[0]
    keyed = look(prompt(key_images=["10", 0], key_seconds="0.5"), film=["7", 0])[0]
    differs = [i for i in range(60) if not torch.equal(plain[i], keyed[i])]
    # Made from the end: what lies behind the window with the key image knows nothing of it.
    assert 8 in differs and max(differs) < 20 and len(keyed) == 60


def test_drift_of_a_film_made_backwards_is_told_against_its_end(look):
    prompt = with_following(small_film(frames=40))
    numbers, latent = look(prompt, numbers=["6", 2], latent=["6", 0])
    lines = numbers.splitlines()
    spans = latent["skyreels_v2_film"].spans
    assert len(lines) == len(spans) + 1 and lines[-2].endswith("spread 1.000, distance 0.000")
    assert {span.reference for span in spans} == {len(spans) - 1}


CONTRADICTIONS = {
    "video": ({"prepend_to": ["14", 0], "source": ["14", 0]}, "source and prepend_to"),
    "end": ({"prepend_to": ["14", 0], "end_image": ["10", 0]}, "end_image and prepend_to"),
    "loop": ({"prepend_to": ["14", 0], "start_image": ["10", 0], "loop": True}, "loop is on"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_what_ends_a_film_excludes_another_end(run_prompt, case):
    inputs, part = CONTRADICTIONS[case]
    prompt = with_following(small_film())
    prompt["13"]["inputs"] = {"schedule": ["5", 0], **inputs}
    prompt["40"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success and part in result.describe(), result.describe()


def test_two_key_images_for_one_frame_are_refused(run_prompt):
    prompt = with_frames(small_film(), **KEYS, key_seconds="0.5, 0.51")
    prompt["40"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success and "frames 12 and 12" in result.describe()


def test_a_film_to_lead_up_to_that_is_too_short_is_refused(run_prompt):
    prompt = with_following(small_film(), length=8)
    prompt["40"] = graphs.node("PreviewImage", images=["7", 0])
    result = run_prompt(prompt)
    assert not result.success
    assert all(part in result.describe() for part in ("prepend_to has 8", "first 9"))


@pytest.mark.parametrize("way", WAYS)
def test_one_sequence_with_pictures(look, without, way):
    inputs = dict(WAYS[way][0])
    if "key_images" in inputs:
        inputs["key_seconds"] = "0.4, 0.6"
    numbers = {"frames": 46, "fps": 24, "sliding": True, "ar_step": 2, "window": 25}
    plain, prompt = without(**numbers), with_frames(small_film(**numbers), **inputs)
    film, through = look(prompt, film=["7", 0], through=coded(prompt, ["10", 0]))
    assert film.shape == plain.shape == (46, SIDE, SIDE, 3)
    assert (film - plain).abs().max() > 1e-2
    if "start_image" in inputs:
        assert (film[0] - through[0]).abs().max() < 1e-3


def test_core_vae_decode_shows_the_same_frames(look):
    prompt = with_frames(small_film(frames=16), **START, **END)
    prompt["20"] = graphs.node("VAEDecode", samples=["6", 0], vae=["3", 0])
    ours, core = look(prompt, ours=["7", 0], core=["20", 0])
    assert len(ours) == 16 and len(core) == 17
    assert (ours - core[:16]).abs().max() < 1e-4


def test_core_vae_decode_shows_a_film_carried_by_latents_whole(look):
    prompt = small_film(frames=40, history="latents")
    prompt["20"] = graphs.node("VAEDecode", samples=["6", 0], vae=["3", 0])
    ours, core = look(prompt, ours=["7", 0], core=["20", 0])
    assert len(ours) == 40 and len(core) == 41
    assert (ours - core[:40]).abs().max() < 1e-4


def test_core_vae_decode_of_a_film_that_goes_on(look):
    prompt = with_video(small_film(frames=30))
    prompt["20"] = graphs.node("VAEDecode", samples=["6", 0], vae=["3", 0])
    latent, core = look(prompt, latent=["6", 0], core=["20", 0])
    assert latent["samples"].shape[2] == latent_length(30) - 3
    assert core.shape[1:] == (SIDE, SIDE, 3) and core.isfinite().all()


CHANGES = {
    "resized": ("LatentUpscale", {"upscale_method": "nearest-exact", "width": 64, "height": 48,
                                  "crop": "disabled"}),
    "end cut off": ("LatentCut", {"dim": "t", "index": 0, "amount": 5}),
    "begin cut off": ("LatentCut", {"dim": "t", "index": 1, "amount": 100}),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("history", ["pixels", "latents"])
def test_latents_changed_after_sampling_are_one_window(look, change, history, caplog):
    kind, inputs = CHANGES[change]
    prompt = with_video(small_film(frames=30, history=history))
    prompt["20"] = graphs.node(kind, samples=["6", 0], **inputs)
    prompt["7"]["inputs"]["samples"] = ["20", 0]
    with caplog.at_level(logging.WARNING, "skyreels_v2"):
        film, latent = look(prompt, film=["7", 0], latent=["20", 0])
    _, _, latents, h, w = latent["samples"].shape
    assert film.shape == (4 * latents - 3, 8 * h, 8 * w, 3)
    assert "changed by another node" in caplog.text


def test_same_pictures_same_film_and_a_longer_one_begins_like_the_shorter(look):
    def make(frames):
        prompt = with_frames(small_film(frames=frames), **START, **KEYS, key_seconds="0.3, 1")
        return look(prompt, latent=["6", 0])[0]["samples"]

    first, second, longer = make(33), make(33), make(49)
    assert torch.equal(first, second) and torch.equal(longer[:, :, :9], first)


def source_film(denoise, frames=41, length=45, **changes):
    """A film made anew from `length` frames "15" of a picture."""
    film = graphs.film(frames=frames, denoise=denoise, **changes)
    prompt = with_frames(film, READ, source=["15", 0])
    prompt["15"] = graphs.node("RepeatImageBatch", image=["11", 0], amount=length)
    return prompt


@pytest.mark.parametrize("ar_step", [0, 2])
def test_less_denoise_keeps_more_of_the_source_in_every_window(look, ar_step):
    far = []
    for denoise in (0.1, 0.5, 0.9):
        prompt = source_film(denoise, ar_step=ar_step)
        film, source, plan = look(prompt, frames=["7", 0], source=["15", 0], plan=["5", 0])
        assert film.shape == (41, *READ, 3) and plan.num_windows == 4
        error = (film - source[:41]).abs().mean((1, 2, 3))  # (T,)
        spans = [plan.new_frames(window) for window in plan.windows()]
        far.append(torch.stack([error[start:stop].mean() for start, stop in spans]))
    near, middle, wide = far
    # Little of a source is left from the middle on: what differs then is chance.
    assert near.mean() < 0.7 * min(middle.mean(), wide.mean()), far
    assert (near < 0.12).all(), far


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (lambda: source_film(1.0), ("denoise is 1", "below 1")),
        (lambda: source_film(0.5, length=40), ("source has 40 frames", "41", "at most 40")),
        (lambda: small_film(denoise=0.5), ("denoise is 0.5", "no source")),
    ],
)
def test_unfit_sources_are_refused(run_prompt, prompt, parts):
    graph = prompt() | {"40": graphs.node("PreviewImage", images=["7", 0])}
    result = run_prompt(graph)
    assert not result.success
    assert all(part in result.describe() for part in parts), result.describe()
