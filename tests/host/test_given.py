"""What other nodes put into a film's model, prompts and images: it works, or is refused by name."""

import dataclasses
import logging
import sys

import graphs
import pytest
import torch

pytestmark = pytest.mark.usefixtures("kept_loaders")


@pytest.fixture
def refusal(run_prompt):
    """`refusal(prompt)` -> the failure's text; no model call may have been made before it."""

    def run(prompt):
        done = []
        prompt["9"] = graphs.node("PreviewImage", images=["7", 0])

        def on_event(event, data):
            if event == "progress_state" and "6" in data["nodes"]:
                done.append(data["nodes"]["6"]["value"])

        result = run_prompt(prompt, on_event)
        assert not result.success and not any(done)
        return result.describe()

    return run


def with_cache(kind, **changes):
    prompt = graphs.film(**changes)
    prompt["30"] = graphs.node(
        kind, model=["1", 0], reuse_threshold=0.2, start_percent=0.15, end_percent=0.95,
        verbose=False,
    )  # fmt: skip
    prompt["6"]["inputs"]["model"] = ["30", 0]
    return prompt


def skipped(caplog):
    """What the cache logged of each window: model calls that it spared."""
    lines = [r.getMessage() for r in caplog.records if " skipped " in r.getMessage()]
    return [int(line.split(" skipped ")[1].split("/")[0]) for line in lines]


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_caches_with_their_defaults_work_where_frames_start_one_after_another(look, kind, caplog):
    """And each window begins with an empty one."""
    numbers = {"frames": 33, "steps": 12, "ar_step": 2, "history": "latents"}
    plain = look(graphs.film(**numbers), latent=["6", 0])[0]["samples"]
    with caplog.at_level(logging.INFO):
        cached = look(with_cache(kind, **numbers), latent=["6", 0])[0]["samples"]
    spared = skipped(caplog)
    assert len(spared) == 3 and any(spared) and cached.isfinite().all()
    assert not torch.equal(cached, plain)


@pytest.mark.parametrize("kind", ["EasyCache", "LazyCache"])
def test_caches_are_refused_by_name_where_the_view_moves(refusal, kind):
    prompt = with_cache(kind, frames=33, sliding=True, ar_step=1)
    text = refusal(prompt)
    assert f"model has {kind}" in text and "turn sliding off" in text
    text = refusal(with_cache(kind, ar_step=1, idle_frames="left_out"))
    assert f"model has {kind}" in text and "set idle_frames to computed" in text


def test_the_nominal_noise_level_never_rises_and_changes_no_velocity(host):
    guidance = sys.modules[
        next(name for name in sys.modules if name.endswith("host.film.guidance"))
    ]
    from skyreels_model.plan.film_plan import FilmPlan
    from skyreels_model.plan.guidance import film_guidance
    from skyreels_model.rollout import Film, SeededNoise, denoise

    plan = FilmPlan(num_frames=17, width=16, height=16, window=17, overlap=9, steps=6, ar_step=2)
    film, told, highest = Film(plan), [], []

    class Guider:
        """As the host's: answers with the denoised latents."""

        def set_cfg(self, cfg):
            pass

        def __call__(self, x, sigma, model_options, seed):
            told.append(float(sigma))
            highest.append(film.sigma)
            return x - sigma * 0.3 * x

    curve = film_guidance(1.0).window(0)
    velocity = guidance.GuidedVelocity(film, curve, Guider(), {"model_options": {}})
    list(denoise(film, velocity, SeededNoise(0)))
    assert told == sorted(told, reverse=True) and highest != sorted(highest, reverse=True)
    plain = Film(plan)
    list(denoise(plain, lambda x, t: 0.3 * x, SeededNoise(0)))
    assert (film.latents - plain.latents).abs().max() < 1e-4


IMAGE_ENCODER = "toy/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
EXTRAS = {
    "WanImageToVideo": ({"start_image": ["20", 0]}, "concat_latent_image"),
    "WanFirstLastFrameToVideo": ({"end_image": ["20", 0]}, "concat_latent_image"),
    "WanFunInpaintToVideo": ({"start_image": ["20", 0]}, "concat_latent_image"),
    "WanFunControlToVideo": ({"control_video": ["20", 0]}, "concat_latent_image"),
    "WanVaceToVideo": ({"reference_image": ["20", 0], "strength": 1.0}, "vace_frames"),
    "WanCameraImageToVideo": ({"start_image": ["20", 0]}, "concat_latent_image"),
    "WanPhantomSubjectToVideo": ({"images": ["20", 0]}, "time_dim_concat"),
}


@pytest.mark.parametrize("kind", EXTRAS)
def test_images_for_other_models_are_not_ignored_in_silence(refusal, kind):
    given, key = EXTRAS[kind]
    prompt = graphs.film()
    prompt["20"] = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=8421504)
    prompt["21"] = graphs.node(
        kind, positive=["4", 0], negative=["4", 1], vae=["3", 0], width=32, height=32, length=17,
        batch_size=1, **given,
    )  # fmt: skip
    prompt["6"]["inputs"] |= {"positive": ["21", 0], "negative": ["21", 1]}
    text = refusal(prompt)
    assert "positive carries" in text and f"({key})" in text and "SkyReels-V2 Frames" in text


def test_an_image_as_clip_sees_it_is_not_ignored(refusal):
    prompt = graphs.film()
    prompt["20"] = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=8421504)
    prompt["21"] = graphs.node("SkyReelsV2ImageEncoderLoader", image_encoder_name=IMAGE_ENCODER)
    prompt["22"] = graphs.node(
        "CLIPVisionEncode", clip_vision=["21", 0], image=["20", 0], crop="center"
    )
    prompt["23"] = graphs.node(
        "unCLIPConditioning", conditioning=["4", 0], clip_vision_output=["22", 0], strength=1.0,
        noise_augmentation=0.0,
    )  # fmt: skip
    prompt["6"]["inputs"]["positive"] = ["23", 0]
    text = refusal(prompt)
    assert "positive carries an image as CLIP sees it (unclip_conditioning)" in text


def test_our_image_to_video_is_not_ignored_by_a_df_model(refusal):
    prompt = graphs.film()
    prompt["20"] = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=8421504)
    prompt["21"] = graphs.node(
        "SkyReelsV2ImageToVideo", positive=["4", 0], negative=["4", 1], vae=["3", 0],
        start_image=["20", 0], width=32, height=32, frames=17,
    )  # fmt: skip
    prompt["6"]["inputs"]["positive"] = ["21", 0]
    assert "positive carries an image" in refusal(prompt)


@pytest.mark.parametrize("weight", ["nan", "1e999"])
def test_a_weight_of_text_that_is_no_number_is_refused(refusal, weight):
    prompt = graphs.film()
    prompt["40"] = graphs.node("CLIPTextEncode", clip=["2", 0], text=f"a (red:{weight}) circle")
    prompt["6"]["inputs"]["positive"] = ["40", 0]
    assert "the weight of a part of the text is " in refusal(prompt)


def test_areas_that_have_no_place_in_a_film_are_refused(refusal):
    prompt = graphs.film()
    prompt["20"] = graphs.node(
        "ConditioningSetAreaPercentage", conditioning=["4", 0], width=0.5, height=0.5, x=0.0, y=0.0,
        strength=1.0,
    )  # fmt: skip
    prompt["6"]["inputs"]["positive"] = ["20", 0]
    assert "positive has an area in percent" in refusal(prompt)
    prompt = graphs.film()
    prompt["21"] = graphs.node("SolidMask", value=1.0, width=32, height=32)
    prompt["20"] = graphs.node(
        "ConditioningSetMask", conditioning=["4", 0], mask=["21", 0], strength=1.0,
        set_cond_area="mask bounds",
    )  # fmt: skip
    prompt["6"]["inputs"]["negative"] = ["20", 0]
    assert "negative has a mask with set_cond_area 'mask bounds'" in refusal(prompt)


@pytest.mark.parametrize(("temporal", "z"), [(0.5, 0.0), (1.0, 0.5)])
def test_areas_of_some_frames_are_refused_before_sampling(refusal, temporal, z):
    prompt = graphs.film()
    prompt["20"] = graphs.node(
        "ConditioningSetAreaPercentageVideo", conditioning=["4", 0], width=1.0, height=1.0,
        temporal=temporal, x=0.0, y=0.0, z=z, strength=1.0,
    )  # fmt: skip
    prompt["6"]["inputs"]["positive"] = ["20", 0]
    assert "positive has an area in time" in refusal(prompt)


def test_masks_of_frames_follow_what_the_model_is_shown(look):
    """With a mask of ones for each latent frame, the film is the one without masks."""
    prompt = graphs.film(ar_step=1, idle_frames="left_out")
    plain = look(prompt, latent=["6", 0])[0]["samples"]
    prompt["20"] = graphs.node("EmptyImage", width=32, height=32, batch_size=5, color=0xFFFFFF)
    prompt["21"] = graphs.node("ImageToMask", image=["20", 0], channel="red")
    prompt["22"] = graphs.node(
        "ConditioningSetMask", conditioning=["4", 0], mask=["21", 0], strength=1.0,
        set_cond_area="default",
    )  # fmt: skip
    prompt["6"]["inputs"]["positive"] = ["22", 0]
    assert torch.equal(look(prompt, latent=["6", 0])[0]["samples"], plain)


def with_mask(mask, **changes):
    probe = next(module for name, module in sys.modules.items() if name.endswith("/host/probe"))
    probe.GIVEN["mask"] = mask
    prompt = graphs.film(**changes)
    prompt["21"] = graphs.node("SkyReelsV2TestGiver", name="mask")
    prompt["20"] = graphs.node(
        "ConditioningSetMask", conditioning=["4", 0], mask=["21", 0], strength=1.0,
        set_cond_area="default",
    )  # fmt: skip
    prompt["6"]["inputs"]["positive"] = ["20", 0]
    return prompt


@pytest.mark.parametrize(
    ("mask", "frames", "words"),
    [
        (torch.ones(4, 32, 32), 17, "a batch of 4 masks; it must be 1 for the whole film, or 5"),
        (torch.ones(5, 32, 32), 25, "a batch of 5 masks; it must be 1 for the whole film"),
        (torch.full((1, 32, 32), torch.nan), 17, "a mask with numbers that are infinite"),
    ],
)
def test_masks_that_cannot_be_laid_over_a_film_are_refused(refusal, look, mask, frames, words):
    assert f"positive has {words}" in refusal(with_mask(mask, frames=frames))


OUTSIDE = [
    ("ConditioningSetArea", {"width": 64, "height": 64, "x": 0, "y": 32}, "32 px of the height"),
    ("ConditioningSetArea", {"width": 64, "height": 64, "x": 800, "y": 0}, "800 px of the width"),
    (
        "ConditioningSetAreaPercentageVideo",
        {"width": 0.5, "height": 0.5, "temporal": 1.0, "x": 1.0, "y": 0.0, "z": 0.0},
        "32 px of the width",
    ),
]


@pytest.mark.parametrize(("kind", "where", "words"), OUTSIDE)
def test_areas_beyond_the_film_are_refused(refusal, kind, where, words):
    prompt = graphs.film()
    prompt["20"] = graphs.node(kind, conditioning=["4", 0], **where, strength=1.0)
    prompt["6"]["inputs"]["positive"] = ["20", 0]
    text = refusal(prompt)
    assert "positive has an area that begins at" in text and words in text, text


@pytest.fixture(scope="module")
def frames_node(host):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS["SkyReelsV2Frames"]


@pytest.mark.parametrize("size", [(32, 32), (40, 50)])
def test_values_beyond_an_image_are_cut_off_and_told_once(look, frames_node, size, caplog):
    (schedule,) = look(graphs.film(), schedule=["5", 0])
    beyond = torch.linspace(-1, 3, size[0])[None, :, None, None].expand(30, *size, 3)
    for name in ("start_image", "end_image", "key_images", "video", "prepend_to"):
        caplog.clear()
        images = beyond[:1] if name.endswith(("image", "images")) else beyond
        seconds = "0.4" if name == "key_images" else ""
        given = {name: images, "key_seconds": seconds}
        film, preview, *_ = frames_node.execute(schedule=schedule, **given).result
        assert preview.min() == 0 and preview.max() == 1
        assert caplog.text.count(f"{name} has values from -1 to 3") == 1
        for piece in film.video.pieces() if film.video else ():
            assert piece.min() == 0 and piece.max() == 1


def test_an_image_that_is_not_finite_is_refused_by_frames_and_image_to_video(look, frames_node):
    import nodes

    schedule, vae, positive = look(graphs.film(), s=["5", 0], vae=["3", 0], positive=["4", 0])
    broken = torch.full((1, 32, 32, 3), 0.5)
    broken[0, 3, 4, 1] = torch.nan
    with pytest.raises(ValueError, match="start_image has numbers in image 1"):
        frames_node.execute(schedule=schedule, start_image=broken)
    node = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2ImageToVideo"]
    with pytest.raises(ValueError, match="start_image has numbers in image 1"):
        node.execute(
            positive=positive, negative=positive, vae=vae, start_image=broken, width=32,
            height=32, frames=17,
        )  # fmt: skip


def test_a_given_clip_is_copied_only_into_the_result(look, frames_node):
    (schedule,) = look(graphs.film(), schedule=["5", 0])
    clip = torch.rand(30, 32, 32, 3)
    film = frames_node.execute(schedule=schedule, video=clip).result[0]
    assert film.video.images.data_ptr() == clip.data_ptr()


def test_a_clip_of_another_frame_rate_keeps_its_speed(look, frames_node, caplog):
    (schedule,) = look(graphs.film(fps=24), schedule=["5", 0])
    clip = torch.linspace(0, 1, 21)[:, None, None, None].expand(-1, 32, 32, 3)
    for name in ("video", "source", "prepend_to"):
        plan = dataclasses.replace(schedule, denoise=0.5) if name == "source" else schedule
        for rate, count in ((12.0, 41), (24.0, 21), (23.976, 21)):
            caplog.clear()
            given = {name: clip, "clip_fps": rate}
            film = frames_node.execute(schedule=plan, **given).result[0]
            brought = film.following if name == "prepend_to" else getattr(film, name)
            assert len(brought) == len(brought.cut()) == count
            assert brought.cut()[0].max() == clip[0].max() and brought.cut()[-1].min() == 1
            told = f"{name} has 12 frames per second and the schedule 24: its 21 frames become 41"
            assert (told in caplog.text) == (count != len(clip))


def test_frames_of_another_size_than_the_schedule_are_refused(refusal):
    prompt = graphs.film()
    prompt["20"] = graphs.node("EmptyImage", width=32, height=32, batch_size=1, color=8421504)
    prompt["21"] = graphs.node("SkyReelsV2Frames", schedule=["22", 0], start_image=["20", 0])
    prompt["22"] = {**prompt["5"], "inputs": {**prompt["5"]["inputs"], "width": 64}}
    prompt["6"]["inputs"]["frames"] = ["21", 0]
    assert "frames are for a film of 64 x 32 and the schedule is for 32 x 32" in refusal(prompt)


def test_one_bar_for_a_film_and_a_text_on_its_node(run_prompt, monkeypatch):
    """The bar of the sampler never goes back, with the VAE at work between its windows."""
    told, values = [], []

    class Instance:
        def send_progress_text(self, text, node_id):
            told.append((node_id, text))

    class Server:
        class PromptServer:
            instance = Instance()

    monkeypatch.setitem(sys.modules, "server", Server)
    prompt = graphs.film(frames=33, overlap=9)
    prompt["9"] = graphs.node("PreviewImage", images=["7", 0])

    def on_event(event, data):
        if event == "progress_state" and "6" in data["nodes"]:
            values.append((data["nodes"]["6"]["value"], data["nodes"]["6"]["max"]))

    assert run_prompt(prompt, on_event).success
    running = [value for value, total in values if total > 1]
    assert running == sorted(running) and len({total for _, total in values if total > 1}) == 1
    texts = [text for node, text in told if node == "6"]
    assert "Window 1 of 3, model call 1 of 9," in texts[0]
    assert "Window 3 of 3, model call 9 of 9, 0 s left. 25 of 33 frames done" in texts[-2]
    assert texts[-1] == "9 model calls, all computed"


def test_a_prompt_is_cleaned_once(look):
    """Beside a bracket two levels of escapes are undone, as the reference does; not four."""
    ids = []
    for text in ("a < b &amp;amp;lt; c", "a < b &amp;lt; c"):
        prompt = graphs.film()
        prompt["4"]["inputs"]["prompt"] = text
        ids.append(look(prompt, positive=["4", 0])[0][0][0])
    assert not torch.equal(*ids)
