"""A film through the host's own guider: guidance, patches, memory, previews and cancel are its."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import latent_preview
import node_helpers
import torch
from torch import Tensor

from ....skyreels_model.grid import CHANNELS
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.plan.guidance import FilmGuidance
from ....skyreels_model.rollout.conditions import Conditions
from ....skyreels_model.rollout.film import Film
from ....skyreels_model.rollout.history import History, history_of
from ....skyreels_model.rollout.loop import finish_window
from ....skyreels_model.rollout.noise import ShotNoise
from .checks import check_model, check_shots, check_vae
from .decoding import decode_pieces, film_latent
from .encoding import encode_frames
from .given import FilmImages
from .guidance import FilmGuider, WindowSampler, per_frame_timesteps
from .shots import FilmShot, plan_shots

WRAPPER_KEY = "skyreels_v2"


def sample_film(
    model: comfy.model_patcher.ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    plan: FilmPlan,
    vae: comfy.sd.VAE | None,
    seed: int,
    guidance: FilmGuidance,
    solver: str,
    images: FilmImages | None = None,
    shots: tuple[FilmShot, ...] = (),
) -> dict[str, Any]:
    """Make the film of `plan`; the host's LATENT, which knows its seams.

    `shots` replace the plan's length, and `positive`, by their own.
    """
    plan = plan_shots(plan, shots) if shots else plan
    plan = images.plan(plan) if images else Conditions().fit(plan)
    shots = shots or (FilmShot(positive, plan.seconds, False, 0, None, None),)
    for shot in shots:
        check_model(shot.model or model, shot.positive, negative, plan)
    check_shots(plan, shots, model)
    check_vae(plan, vae, images is not None)
    latent_format = model.model.latent_format
    conditions = Conditions()
    if images and vae is not None:
        conditions = images.encoded(plan, frame_encoder(vae, latent_format))
    film = Film(plan, solver, conditions=conditions)
    on_row = progress(model, plan.total_rows())
    history = host_history(plan, vae, latent_format)
    noise = ShotNoise(plan, [seed if shot.seed is None else shot.seed for shot in shots])
    prepared: dict[int, comfy.model_patcher.ModelPatcher] = {}
    while not film.done:
        window = plan.window_at(film.window)
        chosen = shots[window.shot].model or model
        if id(chosen) not in prepared:
            prepared[id(chosen)] = film_model(chosen, plan.shift)
        guider = FilmGuider(prepared[id(chosen)])
        shown = [shot for shot, _ in plan.prompts(window, 0, window.length)]
        guider.set_prompts(
            {shot: with_fps(shots[shot].positive, plan.fps) for shot in shown},
            with_fps(negative, plan.fps),
        )
        empty = torch.zeros(1, CHANNELS, plan.shown_latents(window), *plan.latent_size)
        sampler = WindowSampler(film, noise, guidance.window(film.window), on_row)
        sigmas = plan.schedule().sigmas
        guider.sample(empty, empty, sampler, sigmas, disable_pbar=True, seed=seed)
        finish_window(film, history)
    return film_latent(film, latent_format.process_out, images)


def film_model(
    model: comfy.model_patcher.ModelPatcher, shift: float
) -> comfy.model_patcher.ModelPatcher:
    """The model with a timestep per frame, and with the schedule's shift."""
    model = model.clone()
    model.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, WRAPPER_KEY, per_frame_timesteps
    )
    use_shift(model, shift)
    return model


def progress(model: comfy.model_patcher.ModelPatcher, total: int) -> Callable[[Tensor], None]:
    """What a finished row calls: the host's progress bar and preview, over all windows."""
    preview = latent_preview.prepare_callback(model, total)
    rows = iter(range(total))

    def on_row(denoised: Tensor) -> None:
        preview(next(rows), denoised, denoised, total)

    return on_row


def use_shift(model: comfy.model_patcher.ModelPatcher, shift: float) -> None:
    """Let the host turn percents of sampling into noise levels by the schedule's shift."""
    original = model.get_model_object("model_sampling")
    sampling = type(original)(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=original.multiplier)
    model.add_object_patch("model_sampling", sampling)


def with_fps(conditioning: list[Any], fps: int) -> list[Any]:
    """The frame rate rides with the text to models that were trained with it."""
    return node_helpers.conditioning_set_values(conditioning, {"fps": fps})


def frame_encoder(vae: comfy.sd.VAE, latent_format: Any) -> Callable[[Tensor], Tensor]:
    """Frames (T, H, W, 3) in 0..1 -> normalised latents (1, C, F, h, w), by any VAE of the host."""

    def encode(frames: Tensor) -> Tensor:
        latents: Tensor = latent_format.process_in(encode_frames(vae, frames[..., :3]))
        return latents

    return encode


def host_history(plan: FilmPlan, vae: comfy.sd.VAE | None, latent_format: Any) -> History | None:
    """The plan's history through the host's VAE; its frames are (1, 3, n, H, W) in 0..1."""
    if vae is None:
        return history_of(plan, None, None)
    encode_frames = frame_encoder(vae, latent_format)

    def encode(frames: Tensor) -> Tensor:
        return encode_frames(frames[0].movedim(0, -1).clamp(0, 1))

    def decode(latents: Tensor, repeated: int) -> Iterator[Tensor]:
        raw = latent_format.process_out(latents.cpu())
        return (piece.movedim(-1, 0)[None] for piece in decode_pieces(vae, raw, repeated))

    return history_of(plan, decode, encode)
