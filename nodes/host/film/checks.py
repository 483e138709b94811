"""What can go together in a film, checked before any work is done."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
from torch import nn

from ....skyreels_model.grid import CHANNELS, frame_length
from ....skyreels_model.plan.film_plan import FilmPlan
from ..sockets.model import VARIANT_KEY
from .shots import FilmShot

LOG = logging.getLogger("skyreels_v2")


def check_model(
    model: comfy.model_patcher.ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    plan: FilmPlan,
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
    if channels != CHANNELS:
        _check_image(channels, positive, negative, plan)
    given = plan.start or plan.pictures or plan.end or plan.following
    forcing = plan.num_windows > 1 or plan.ar_step or given
    variant = model.model_options["transformer_options"].get(VARIANT_KEY)
    if forcing and variant in ("T2V", "I2V"):
        LOG.warning(
            "The model is a %s checkpoint: it was not trained to continue given frames or for "
            "frames at different noise levels. It runs, but use a DF checkpoint for long films.",
            variant,
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


def _check_image(channels: int, positive: list[Any], negative: list[Any], plan: FilmPlan) -> None:
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
        LOG.warning(
            "negative carries no image, and positive does; the model was trained with it in both: "
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
            f"sliding is on and the storyboard's shots have {len(chosen)} models; one view shows "
            f"several shots at once, by one model: turn sliding off, or give all shots the same"
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
    if vae is not None and getattr(vae, "latent_channels", CHANNELS) != CHANNELS:
        raise ValueError(
            f"vae has {vae.latent_channels} latent channels; this model needs the Wan 2.1 VAE with "
            f"{CHANNELS}"
        )
