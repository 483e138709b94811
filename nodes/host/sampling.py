"""A film through the host's own guider: guidance, patches, memory, previews and cancel are its."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import latent_preview
import node_helpers
import torch
from torch import Tensor

from ...skyreels_model.plan import FilmPlan
from ...skyreels_model.rollout import (
    CHANNELS,
    Film,
    History,
    SeededNoise,
    Velocity,
    denoise_window,
    finish_window,
)
from .decoding import decode_pieces, film_latent
from .model import VARIANT_KEY

FRAME_TIMESTEPS = "skyreels_v2_frame_timesteps"
WRAPPER_KEY = "skyreels_v2"
LOG = logging.getLogger("skyreels_v2")


def per_frame_timesteps(
    executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Put the row's timestep of every frame (1, F) in place of the batch's one.

    Works in any Wan transformer that follows the host's call, whoever loaded it.
    """
    options = kwargs.get("transformer_options") or next(
        (a for a in reversed(args) if isinstance(a, dict)), {}
    )
    frames = options.get(FRAME_TIMESTEPS)
    if frames is not None:
        cut = options.get("context_window")
        if cut is not None:
            frames = cut.get_tensor(frames, dim=1)
        if frames.shape[1] != x.shape[2]:
            raise ValueError(
                f"a node has cut the model's {frames.shape[1]} latent frames to {x.shape[2]} (a "
                f"condition with an area in time?); SkyReels-V2's sampler cannot follow that"
            )
        timestep = frames.to(timestep).expand(x.shape[0], -1)
    return executor(x, timestep, *args, **kwargs)


class WindowSampler(comfy.samplers.Sampler):
    """The host's sampler slot, filled with one window of a film."""

    def __init__(self, film: Film, noise: SeededNoise, on_row: Callable[[Tensor], None]) -> None:
        self.film, self.noise, self.on_row = film, noise, on_row

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        velocity = guided_velocity(self.film, model_wrap, extra_args)
        for row in denoise_window(self.film, velocity, self.noise, noise.device):
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.on_row(row.denoised)
        assert self.film.latents is not None
        return self.film.latents


def guided_velocity(film: Film, model_wrap: Any, extra_args: dict[str, Any]) -> Velocity:
    """velocity(x, t) from the host's guider, asked at the film's nominal sigma.

    The guider answers with denoised = x - sigma * v, so v = (x - denoised) / sigma.
    """
    model_options = extra_args["model_options"]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        options = {**model_options.get("transformer_options", {}), FRAME_TIMESTEPS: t}
        denoised = model_wrap(
            x,
            x.new_full((x.shape[0],), film.sigma),
            model_options={**model_options, "transformer_options": options},
            seed=extra_args.get("seed"),
        )
        return (x - denoised) / film.sigma

    return velocity


def sample_film(
    model: comfy.model_patcher.ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    plan: FilmPlan,
    vae: comfy.sd.VAE | None,
    seed: int,
    cfg: float,
    solver: str,
) -> dict[str, Any]:
    """Make the film of `plan`; the host's LATENT, which knows its seams."""
    check_inputs(model, positive, negative, plan, vae)
    model = model.clone()
    model.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, WRAPPER_KEY, per_frame_timesteps
    )
    use_shift(model, plan.shift)
    film, noise = Film(plan, solver), SeededNoise(seed)
    latent_format = model.model.latent_format
    history = vae_history(vae, latent_format, plan.overlap) if vae is not None else None
    total = plan.total_rows()
    preview = latent_preview.prepare_callback(model, total)
    done = 0

    def on_row(denoised: Tensor) -> None:
        nonlocal done
        preview(done, denoised, denoised, total)
        done += 1

    while not film.done:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(with_fps(positive, plan.fps), with_fps(negative, plan.fps))
        guider.set_cfg(cfg)
        window = plan.window_at(film.window)
        empty = torch.zeros(1, CHANNELS, window.length, *plan.latent_size)
        sampler = WindowSampler(film, noise, on_row)
        guider.sample(empty, empty, sampler, plan.schedule().sigmas, disable_pbar=True, seed=seed)
        finish_window(film, history)
    return film_latent(film, latent_format.process_out)


def use_shift(model: comfy.model_patcher.ModelPatcher, shift: float) -> None:
    """Let the host turn percents of sampling into noise levels by the schedule's shift."""
    original = model.get_model_object("model_sampling")
    sampling = type(original)(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=original.multiplier)
    model.add_object_patch("model_sampling", sampling)


def with_fps(conditioning: list[Any], fps: int) -> list[Any]:
    """The frame rate rides with the text to models that were trained with it."""
    return node_helpers.conditioning_set_values(conditioning, {"fps": fps})


def vae_history(vae: comfy.sd.VAE, latent_format: Any, overlap: int) -> History:
    """Continue a film through pixels with the host's VAE object, whichever it is."""

    def history(latents: Tensor, given: int, tail: Tensor | None) -> tuple[Tensor, Tensor]:
        kept = [] if tail is None else [tail]
        for frames in decode_pieces(vae, latent_format.process_out(latents.cpu()), given):
            # Cloned, or it would keep all that was decoded.
            kept = [torch.cat([*kept, frames])[-overlap:].clone()]  # (overlap, H, W, 3)
        encoded = vae.encode(kept[0][..., :3])
        return latent_format.process_in(encoded.float()), kept[0]

    return history


def check_inputs(
    model: comfy.model_patcher.ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    plan: FilmPlan,
    vae: comfy.sd.VAE | None,
) -> None:
    """Raise ValueError, before any work, on inputs that cannot go together."""
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
    width = transformer.text_embedding[0].in_features
    for name, conditioning in (("positive", positive), ("negative", negative)):
        found = conditioning[0][0].shape[-1]
        if found != width:
            raise ValueError(
                f"{name} has text of width {found}; this model takes {width}: use the text encoder "
                f"that belongs to it (UMT5-XXL, width 4096, for the published checkpoints)"
            )
    if transformer.patch_embedding.weight.shape[1] != CHANNELS and not any(
        "concat_latent_image" in entry[1] for entry in positive
    ):
        raise ValueError(
            f"model takes {transformer.patch_embedding.weight.shape[1]} channels (it is an "
            f"image-to-video model), but positive carries no image; use a DF or T2V checkpoint, or "
            f"add WanImageToVideo before the sampler"
        )
    if plan.num_windows > 1 and vae is None:
        raise ValueError(
            f"vae is not connected; a film of {plan.num_frames} frames is made in "
            f"{plan.num_windows} windows, each continuing the last one's frames through the VAE. "
            f"Connect it, or shorten the film to {plan.window} frames"
        )
    if vae is not None and getattr(vae, "latent_channels", CHANNELS) != CHANNELS:
        raise ValueError(
            f"vae has {vae.latent_channels} latent channels; this model needs the Wan 2.1 VAE with "
            f"{CHANNELS}"
        )
    if model.model_options["transformer_options"].get(VARIANT_KEY) in ("T2V", "I2V"):
        LOG.warning(
            "The model is a T2V or I2V checkpoint: it was not trained to continue given frames or "
            "for frames at different noise levels. It runs, but use a DF checkpoint for long films."
        )
