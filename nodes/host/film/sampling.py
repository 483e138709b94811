"""A film through the host's own guider: guidance, patches, memory, previews and cancel are its."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import node_helpers
import torch
from torch import Tensor

from ....skyreels_model.cache.curves import Curves
from ....skyreels_model.cache.kept_frames import keeping_of
from ....skyreels_model.grid import CHANNELS
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.plan.given import Given
from ....skyreels_model.plan.guidance import FilmGuidance
from ....skyreels_model.plan.prompts import find_prompts
from ....skyreels_model.plan.resting import most_finished
from ....skyreels_model.plan.windows import Window
from ....skyreels_model.rollout.conditions import Conditions
from ....skyreels_model.rollout.film import Film, RowDone
from ....skyreels_model.rollout.history import History, history_of
from ....skyreels_model.rollout.noise import ShotNoise
from ....skyreels_model.rollout.parts import Decode
from ....skyreels_model.store.store import make_film
from ..sockets.kept import KEEPING, HostKeeping
from ..sockets.latent import FILM_KEY
from ..sockets.model import is_causal
from ..sockets.tea_cache import TALLY
from .cache import CALIBRATE, CURVES, OURS, find_settings, read_options, write_calibration
from .checks import check_film
from .decoding import STORED_KEY, StoredLatent, decode_pieces, film_latent
from .encoding import encode_frames
from .given import FilmImages
from .guidance import FilmGuider, WindowSampler, use_frame_timesteps
from .lack import PromptsApart
from .progress import FilmProgress
from .resting import refuse_leading_in, warn_solver
from .shots import FilmShot, plan_shots, put_loras
from .store import (
    StoreSettings,
    describe_session,
    film_noise,
    latent_sink,
    open_recorder,
    open_store,
    open_stored,
    sample_saved,
)

WRAPPER_KEY = "skyreels_v2"


def sample_film(
    model: comfy.model_patcher.ModelPatcher,
    positive: list[Any],
    negative: list[Any],
    schedule: FilmPlan,
    vae: comfy.sd.VAE | None,
    seed: int,
    guidance: FilmGuidance,
    solver: str,
    images: FilmImages | None = None,
    shots: tuple[FilmShot, ...] = (),
    store: StoreSettings | None = None,
) -> tuple[dict[str, Any], str]:
    """Make the film of `schedule`: the host's LATENT, which knows its seams, and a report.

    `shots` replace the schedule's length, and `positive`, by their own. `store`: where it is saved.
    """
    plan = plan_shots(schedule, shots) if shots else schedule
    plan = plan.fit(images.counts if images else Given())
    shots = put_loras(shots or (FilmShot(positive, plan.seconds, False, 0, None, None),), model)
    noise = film_noise(plan, [seed if shot.seed is None else shot.seed for shot in shots], store)
    extends = images is not None and images.video is not None
    progress = FilmProgress(model, plan, extends)
    check_film(plan, model, shots, negative, vae, images, progress.warn)
    if any(map(is_causal, (shot.model or model for shot in shots))):
        warn_solver(solver, guidance, progress.warn)
        refuse_leading_in(store.takes if store else "")

    latent_format = model.model.latent_format
    conditions = Conditions()
    if images and vae is not None:
        conditions = images.encode(plan, frame_encoder(vae, latent_format))
    maker = FilmMaker(model, shots, negative, plan, guidance, noise, seed, progress)

    maker.calibrated()
    film = Film(plan, solver, conditions=conditions)
    with open_store(store, film, maker, vae, extends) as session:
        decode = frame_decoder(vae, latent_format)
        recorder = open_recorder(store, session, film, vae, extends, decode)
        history = host_history(plan, vae, latent_format, recorder.decode if recorder else decode)

        def on_window() -> None:
            if recorder:
                recorder.finish_window()
                progress.so_far.show_videos(recorder.paths)

        sample = functools.partial(sample_saved, maker, session=session)
        aside = host_history(plan, vae, latent_format, decode)
        make_film(film, sample, history, session, on_window, aside)
        latent = film_latent(film, latent_format.process_out, images, latent_sink(store))
    settings = [find_settings(one.model_options) for one in maker.models()]
    report = progress.finish(film, any(one is not None and one.threshold > 0 for one in settings))
    for one in maker.calibrated():
        report += "\n" + write_calibration(one, maker.curves, plan)
    if store and session:
        latent[STORED_KEY] = StoredLatent(open_stored(store), latent[FILM_KEY].digest)
        report += "\n" + describe_session(session, store)
    return latent, report


@dataclass
class FilmMaker:
    """What all windows of a film are made with: models, prompts, guidance, noise."""

    model: comfy.model_patcher.ModelPatcher
    shots: tuple[FilmShot, ...]
    negative: list[Any]
    plan: FilmPlan
    guidance: FilmGuidance
    noise: ShotNoise
    seed: int
    progress: FilmProgress
    curves: Curves = field(default_factory=Curves.unknown)  # measured, where that is asked for
    # By id of the model of a shot, which `shots` keeps alive.
    prepared: dict[int, comfy.model_patcher.ModelPatcher] = field(default_factory=dict)

    def sample_window(self, film: Film, save: Callable[[Film], None] | None = None) -> None:
        """Denoise the film's current window, in a run of the host's guider of its own.

        save: is given the film after every row.
        """
        plan, window = film.plan, film.plan.window_at(film.window)
        self.progress.begin_window(film)

        def finish_row(row: RowDone) -> None:
            self.progress.finish_row(row)
            if save:
                save(film)

        sampler = WindowSampler(film, self.noise, self.guidance.window(film.window), finish_row)
        empty = torch.zeros(1, CHANNELS, plan.shown_latents(window), *plan.latent_size)
        guider, sigmas = self._guide_window(window), plan.schedule().sigmas
        guider.sample(empty, empty, sampler, sigmas, disable_pbar=True, seed=self.seed)

    def models(self) -> list[comfy.model_patcher.ModelPatcher]:
        """The model of each shot."""
        return [shot.model or self.model for shot in self.shots]

    def calibrated(self) -> list[comfy.model_patcher.ModelPatcher]:
        """The model that the film measures, if it does. Raises ValueError for several."""
        asked = {id(m): m for m in self.models() if CALIBRATE in read_options(m)}
        if len(asked) > 1 or (asked and len({*map(id, self.models())}) > 1):
            raise ValueError(
                "mode of SkyReels-V2 TeaCache is calibrate, and the storyboard's shots have "
                "several models (a LoRA at another strength counts as one): calibrate one at a time"
            )
        return list(asked.values())

    def is_causal(self) -> bool:
        """Whether a model of a shot is one of blocks."""
        return any(map(is_causal, self.models()))

    def model_of(self, window: Window) -> comfy.model_patcher.ModelPatcher:
        return self.shots[window.shot].model or self.model

    def _guide_window(self, window: Window) -> FilmGuider:
        """The host's guidance with the model and the prompts that a window shows."""
        guider = FilmGuider(self._prepare_model(self.model_of(window)))
        shown = [shot for shot, _ in find_prompts(self.plan, window, 0, window.length)]
        prompts = {shot: set_fps(self.shots[shot].positive, self.plan.fps) for shot in shown}
        guider.set_prompts(prompts, set_fps(self.negative, self.plan.fps))
        return guider

    def _prepare_model(
        self, model: comfy.model_patcher.ModelPatcher
    ) -> comfy.model_patcher.ModelPatcher:
        """The model with a timestep per frame, and with the schedule's shift; made once."""
        if id(model) not in self.prepared:
            prepared = model.clone()
            kinds = comfy.patcher_extension.WrappersMP
            prepared.add_wrapper_with_key(kinds.DIFFUSION_MODEL, WRAPPER_KEY, use_frame_timesteps)
            apart = PromptsApart(self.progress.warn)
            prepared.add_wrapper_with_key(kinds.CALC_COND_BATCH, WRAPPER_KEY, apart)
            options = prepared.model_options["transformer_options"]
            options[OURS], options[TALLY] = True, self.progress.published
            if CALIBRATE in options:
                options[CURVES] = self.curves
            keeping = keeping_of(self.plan, is_causal(model))
            if keeping is not None:
                options[KEEPING] = HostKeeping(keeping, most_finished(self.plan))
            use_shift(prepared, self.plan.shift)
            self.prepared[id(model)] = prepared
        return self.prepared[id(model)]


def use_shift(model: comfy.model_patcher.ModelPatcher, shift: float) -> None:
    """Let the host turn percents of sampling into noise levels by the schedule's shift."""
    original = model.get_model_object("model_sampling")
    sampling = type(original)(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=original.multiplier)
    model.add_object_patch("model_sampling", sampling)


def set_fps(conditioning: list[Any], fps: int) -> list[Any]:
    """The frame rate rides with the text to models that were trained with it."""
    return node_helpers.conditioning_set_values(conditioning, {"fps": fps})


def frame_encoder(vae: comfy.sd.VAE, latent_format: Any) -> Callable[[Tensor], Tensor]:
    """Frames (T, H, W, 3) in 0..1 -> normalised latents (1, C, F, h, w), by any VAE of the host."""

    def encode(frames: Tensor) -> Tensor:
        raw = encode_frames(vae, frames[..., :3], on_latents=stop_if_cancelled)
        latents: Tensor = latent_format.process_in(raw)
        return latents

    return encode


def stop_if_cancelled(count: int) -> None:
    """No bar of its own for the VAE within a film's; but a cancel is heard."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def frame_decoder(vae: comfy.sd.VAE | None, latent_format: Any) -> Decode:
    """Normalised latents (1, C, F, h, w) -> frames (1, 3, n, H, W) in 0..1, by any VAE."""

    def decode(latents: Tensor) -> Iterator[Tensor]:
        return decode_pieces(vae, latents.cpu(), convert=latent_format.process_out)

    return decode


def host_history(
    plan: FilmPlan, vae: comfy.sd.VAE | None, latent_format: Any, decode: Decode
) -> History | None:
    """The plan's history through the host's VAE; its frames are (1, 3, n, H, W) in 0..1."""
    if vae is None:
        return history_of(plan, None, None)
    encode_frames = frame_encoder(vae, latent_format)

    def encode(frames: Tensor) -> Tensor:
        return encode_frames(frames[0].movedim(0, -1).clamp(0, 1))

    return history_of(plan, decode, encode)
