"""What can go together in a film, checked before any work is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
from torch import Tensor, nn

from ....skyreels_model.grid import CHANNELS, SPATIAL_STRIDE, frame_length
from ....skyreels_model.plan.film_plan import FilmPlan
from ..sockets.model import VARIANT_KEY
from ..sockets.tea_cache import SETTINGS
from ..sockets.vae import check_wan_vae
from .cache import find_settings
from .given import FilmImages
from .resting import check_resting
from .shots import FilmShot

Warn = Callable[[str], None]
# What nodes put into a prompt for models that take it: its name there, what it is, and the part of
# the transformer that takes it. What no part is named for, our sampler takes from no model.
EXTRAS = (
    ("concat_latent_image", "an image", None),
    ("clip_vision_output", "an image as CLIP sees it", "img_emb"),
    ("unclip_conditioning", "an image as CLIP sees it", None),
    ("vace_frames", "a control video for VACE models", "vace_patch_embedding"),
    ("camera_conditions", "a camera path", "control_adapter"),
    ("reference_latents", "a reference image", "ref_conv"),
    ("time_dim_concat", "subject images for Phantom models", None),
    ("context_latents", "context images", None),
    ("audio_embed", "sound", None),
    ("control_video", "a control video", None),
    ("pose_video_latent", "a pose video", None),
    ("face_video_pixels", "a face video", None),
    ("reference_motion", "a motion reference", None),
    ("control", "a ControlNet", None),
)
# Those of them that are made for all frames of a window at once.
OF_ALL_FRAMES = ("vace_frames", "camera_conditions")


def check_film(
    plan: FilmPlan,
    model: comfy.model_patcher.ModelPatcher,
    shots: tuple[FilmShot, ...],
    negative: list[Any],
    vae: comfy.sd.VAE | None,
    images: FilmImages | None,
    warn: Warn,
) -> None:
    """Raise ValueError for what cannot go together; warn of what goes together poorly."""
    if images is not None and images.size != (plan.width, plan.height):
        width, height = images.size
        raise ValueError(
            f"frames are for a film of {width} x {height} and the schedule is for {plan.width} x "
            f"{plan.height}: connect the same schedule to SkyReels-V2 Frames and to the sampler"
        )
    for shot in shots:
        check_model(shot.model or model, shot.positive, negative, plan, warn)
    check_shots(plan, shots, model)
    check_vae(plan, vae, images is not None)


def check_model(
    model: comfy.model_patcher.ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    plan: FilmPlan,
    warn: Warn,
) -> None:
    """Raise ValueError for a model that does not fit its prompts or the plan; warn of poor fits."""
    transformer = model.get_model_object("diffusion_model")
    if not hasattr(transformer, "text_embedding") or not hasattr(transformer, "patch_embedding"):
        raise ValueError(
            f"model is a {type(transformer).__name__}; SkyReels-V2's sampler needs a SkyReels-V2 "
            f"or Wan 2.1 video model"
        )
    sampling = model.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscreteFlow):
        raise ValueError(
            "model's sampling has been changed by a node to one that is not flow matching; connect "
            "the model without that node (a shift node such as ModelSamplingSD3 is fine)"
        )
    _check_text(transformer, positive, negative)
    channels = transformer.patch_embedding.weight.shape[1]
    for name, prompt in (("positive", positive), ("negative", negative)):
        _check_extras(name, prompt, transformer, channels > CHANNELS, plan)
        _check_areas(name, prompt, plan)
    _check_cache(model, plan, warn)
    check_resting(model, plan, warn)
    if channels != CHANNELS:
        _check_image(channels, positive, negative, plan, warn)
    given = plan.start or plan.pictures or plan.end or plan.following
    forcing = plan.num_windows > 1 or plan.ar_step or given
    variant = model.model_options["transformer_options"].get(VARIANT_KEY)
    if forcing and variant in ("T2V", "I2V"):
        warn(
            f"The model is a {variant} checkpoint. It was not trained to continue given frames, "
            f"nor for frames at different noise levels. It runs, but use a DF checkpoint for long "
            f"films."
        )


def _check_text(transformer: nn.Module, positive: list[Any], negative: list[Any]) -> None:
    width = transformer.text_embedding[0].in_features
    for name, conditioning in (("positive", positive), ("negative", negative)):
        found = conditioning[0][0].shape[-1]
        if found != width:
            raise ValueError(
                f"{name} has text of width {found}; this model takes {width}: use the text encoder "
                f"that belongs to it (UMT5-XXL, width 4096, for SkyReels-V2 and Wan 2.1)"
            )


def _check_extras(
    name: str, prompt: list[Any], transformer: nn.Module, takes_image: bool, plan: FilmPlan
) -> None:
    """Refuse what a node has put into a prompt and this model would ignore."""
    carried = {key for entry in prompt for key, value in entry[1].items() if value is not None}
    for key, what, part in EXTRAS:
        taken = getattr(transformer, part, None) is not None if part else False
        if key == "concat_latent_image":
            taken = takes_image
        if key in carried and not taken:
            raise ValueError(
                f"{name} carries {what} ({key}), which this model does not take: it would be "
                f"ignored. Connect the prompt without that node. To give a DF model images, use "
                f"SkyReels-V2 Frames. To use the node, load a model that is made for it"
            )
        if key in carried and key in OF_ALL_FRAMES and plan.leaves_out:
            raise ValueError(
                f"idle_frames is left_out, and {name} carries {what} ({key}), which is for all "
                f"frames of a window: set idle_frames to computed"
            )


def _check_areas(name: str, prompt: list[Any], plan: FilmPlan) -> None:
    """Refuse areas that the host cannot place in a film."""
    for _, options in prompt:
        area = options.get("area")
        if area is not None and area[0] == "percentage" and len(area) != 7:
            raise ValueError(
                f"{name} has an area in percent of an image; a film has time, too: use "
                f"ConditioningSetAreaPercentageVideo"
            )
        if area is not None:
            _check_place(name, area, plan)
            _check_time(name, area, plan)
        if options.get("set_area_to_bounds"):
            raise ValueError(
                f"{name} has a mask with set_cond_area 'mask bounds', which works for images only: "
                f"set it to 'default'"
            )
        if options.get("mask") is not None:
            _check_mask(name, options["mask"], plan)


def _check_mask(name: str, mask: Tensor, plan: FilmPlan) -> None:
    """Refuse several masks (n, height, width) that are not one for each latent frame in view."""
    count = 1 if mask.ndim < 3 else mask.shape[-3]
    shown = plan.shown_latents(plan.window_at(0))
    one_view = plan.num_windows == 1 and not plan.sliding
    if count != 1 and not (one_view and count == shown):
        also = f", or {shown}, one for each latent frame" if one_view else ""
        raise ValueError(
            f"{name} has a batch of {count} masks; it must be 1 for the whole film{also}"
        )


def _check_place(name: str, area: Sequence[Any], plan: FilmPlan) -> None:
    """Refuse an area, its sizes before its places, that begins beyond the picture."""
    percent = area[0] == "percentage"
    places = area[-2:]  # down and across
    sides = zip(places, plan.latent_size, ("height", "width"), strict=True)
    for place, side, what in sides:
        begin = round(place * side) if percent else place
        if not 0 <= begin < side:
            raise ValueError(
                f"{name} has an area that begins at {begin * SPATIAL_STRIDE} px of the {what}; it "
                f"must be inside the film of {plan.width} x {plan.height}"
            )


def _check_time(name: str, area: Sequence[Any], plan: FilmPlan) -> None:
    """Refuse an area of some frames only: in the model there is a timestep for each of all."""
    if len(area) < 6:
        return
    frames = max(plan.shown_latents(window) for window, _ in plan.layout.groups())
    length, begin = area[0], area[3]
    if area[0] == "percentage":
        length, begin = (round(share * frames) for share in (area[1], area[4]))
    if begin or length < frames:
        raise ValueError(
            f"{name} has an area in time, of {length} latent frames after {begin}; it must be of "
            f"all {frames} of a window: set temporal to 1 and z to 0"
        )


def _check_cache(model: comfy.model_patcher.ModelPatcher, plan: FilmPlan, warn: Warn) -> None:
    """Refuse caches where what they keep of one model call does not fit the next."""
    options = model.model_options["transformer_options"]
    cache = options.get("easycache")
    name = getattr(cache, "name", "EasyCache")
    if cache is not None and (SETTINGS in options or find_settings(model.model_options)):
        raise ValueError(
            f"model has {name} and SkyReels-V2 TeaCache; a cache of a cache adds up their errors: "
            f"connect the model with one of the two"
        )
    if cache is not None and plan.sliding:
        raise ValueError(
            f"model has {name}, which keeps the model's last answer in its place, and sliding is "
            f"on, which moves the view over the film: connect the model without it, or turn "
            f"sliding off"
        )
    if cache is not None and plan.leaves_out:
        raise ValueError(
            f"model has {name}, which keeps the model's last answer, and idle_frames is left_out, "
            f"which gives the next call more frames: use SkyReels-V2 TeaCache with mode automatic "
            f"in its place, or set idle_frames to computed"
        )
    if not plan.ar_step:
        return
    if SETTINGS in options:
        raise ValueError(
            f"model has the published TeaCache, which decides for all frames at once, and ar_step "
            f"is {plan.ar_step}, which gives them different noise levels: set mode to automatic in "
            f"SkyReels-V2 TeaCache, or ar_step to 0"
        )
    if cache is not None:
        warn(
            f"The model has {name}, which decides for all frames at once, and ar_step is "
            f"{plan.ar_step}, which gives them different noise levels. It skips too much of some. "
            f"Use SkyReels-V2 TeaCache with mode automatic in its place."
        )


def _check_image(
    channels: int, positive: list[Any], negative: list[Any], plan: FilmPlan, warn: Warn
) -> None:
    """An image-to-video model makes the film that its image was prepared for, in one window."""
    if plan.shots:
        raise ValueError(
            f"storyboard is connected, and model takes {channels} channels (it is an "
            f"image-to-video model), whose image a storyboard's prompts do not carry; disconnect "
            f"storyboard, or use a DF checkpoint with SkyReels-V2 Frames"
        )
    images, others = (
        [e[1]["concat_latent_image"] for e in text if "concat_latent_image" in e[1]]
        for text in (positive, negative)
    )
    if images and not others:
        warn(
            "negative carries no image, and positive does. The model was trained with it in both: "
            "connect the negative of SkyReels-V2 Image to Video or WanImageToVideo."
        )
    if not images:
        raise ValueError(
            f"model takes {channels} channels (it is an image-to-video model), but positive "
            f"carries no image; use a DF or T2V checkpoint, or add SkyReels-V2 Image to Video or "
            f"WanImageToVideo before the sampler"
        )
    if plan.sliding:
        raise ValueError(
            "sliding is on; an image-to-video model makes films of one window: turn sliding off, "
            "or use a DF checkpoint with SkyReels-V2 Frames"
        )
    if plan.num_windows > 1:
        raise ValueError(
            f"window is {plan.window} frames and the film has {plan.num_frames}; an image-to-video "
            f"model makes films of one window: set window to at least "
            f"{frame_length(plan.latent_frames)}, or use a DF checkpoint with SkyReels-V2 Frames"
        )
    if plan.end or plan.following:
        raise ValueError(
            "frames has an end image or a clip to lead into; an image-to-video model takes only "
            "the image that positive carries: disconnect frames, or use a DF checkpoint with it"
        )
    frames, height, width = images[0].shape[2:]
    if (frames, height, width) != (plan.latent_frames, *plan.latent_size):
        raise ValueError(
            f"positive carries an image for {width * 8} x {height * 8} and "
            f"{frame_length(frames)} frames; the schedule is for {plan.width} x {plan.height} and "
            f"{plan.num_frames} frames: give both the same numbers"
        )


def check_shots(
    plan: FilmPlan, shots: tuple[FilmShot, ...], model: comfy.model_patcher.ModelPatcher
) -> None:
    """Raise ValueError for models of shots that would be in one view."""
    chosen = {id(shot.model or model) for shot in shots}
    if plan.sliding and len(chosen) > 1:
        raise ValueError(
            f"sliding is on and the storyboard's shots have {len(chosen)} models (a LoRA at "
            f"another strength counts as one); one view shows several shots at once, by one "
            f"model: turn sliding off, or give all shots the same"
        )


def check_vae(plan: FilmPlan, vae: comfy.sd.VAE | None, has_images: bool) -> None:
    """Raise ValueError where a VAE is needed and there is none, or it is another model's."""
    if vae is None and has_images:
        raise ValueError("vae is not connected; the images of frames are encoded with it")
    continued = any(plan.continues(window) for window, _ in plan.layout.groups())
    if vae is None and continued and plan.history != "latents":
        raise ValueError(
            f"vae is not connected; a film of {plan.num_frames} frames is made in "
            f"{plan.num_windows} windows, each continuing the last one's frames through the VAE. "
            f"Connect it, or shorten the film to {plan.window} frames, or set history to latents"
        )
    if vae is not None:
        check_wan_vae(vae)
