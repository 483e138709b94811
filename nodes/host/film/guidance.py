"""Velocity of a film's window from the host's guider, each latent frame at its own timestep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.conds
import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ....skyreels_model.cache.kept_frames import FrameKeeper
from ....skyreels_model.plan.guidance import GuidanceCurve
from ....skyreels_model.plan.prompts import find_prompts
from ....skyreels_model.rollout.film import Film, RowDone
from ....skyreels_model.rollout.loop import denoise
from ....skyreels_model.rollout.noise import NoiseSource
from ..sockets.kept import KEEPER, KEEPING
from .cache import cache_velocity

FRAME_TIMESTEPS = "skyreels_v2_frame_timesteps"
PROMPT_SHARES = "skyreels_v2_prompt_shares"
SHOT = "skyreels_v2_shot_{}"


def use_frame_timesteps(
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


class FilmGuider(comfy.samplers.CFGGuider):
    """The host's guidance; where several shots are in view, each latent by its own prompt."""

    def set_prompts(self, positives: dict[int, list[Any]], negative: list[Any]) -> None:
        """`positives`: by shot, the prompts that a window shows; the first is the host's own."""
        named = {SHOT.format(shot): positive for shot, positive in positives.items()}
        self.inner_set_conds({"positive": [*positives.values()][0], "negative": negative, **named})

    def predict_noise(
        self,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any] = {},  # noqa: B006 (the host's signature)
        seed: int | None = None,
    ) -> Tensor:
        """Denoised (1, C, F, h, w). Prompts are mixed before the host's guidance sees them."""
        (first, _), *over = model_options["transformer_options"][PROMPT_SHARES]
        before = self.conds
        conds = {name: cut_frames(cond, x.shape[2]) for name, cond in before.items()}
        if over:
            others = [(conds[SHOT.format(shot)], share) for shot, share in over]
            functions = model_options.get("sampler_pre_cfg_function", [])
            model_options = {
                **model_options,
                "sampler_pre_cfg_function": [mix_prompts(others), *functions],
            }
        self.conds = {**conds, "positive": conds[SHOT.format(first)]}
        try:
            return super().predict_noise(x, timestep, model_options, seed)
        finally:
            self.conds = before


def cut_frames(conds: list[dict[str, Any]], frames: int) -> list[dict[str, Any]]:
    """The host's conditions of a window for a model that is shown its first latents only.

    Its noise-shaped ones and its masks were made for the whole window.
    """
    return [
        {
            **cond,
            "model_conds": {
                name: type(one)(one.cond[:, :, :frames])
                if isinstance(one, comfy.conds.CONDNoiseShape)
                else one
                for name, one in cond["model_conds"].items()
            },
            **({"mask": cond["mask"][:, :frames]} if "mask" in cond else {}),
        }
        for cond in conds
    ]


def mix_prompts(others: list[tuple[Any, Tensor]]) -> Callable[[dict[str, Any]], list[Tensor]]:
    """The host's hook before guidance: lay other prompts' predictions over the first one's.

    others: the prompts, with the share (F,) of each latent that they have.
    """

    def mix(args: dict[str, Any]) -> list[Tensor]:
        mixed, *rest = args["conds_out"]
        for cond, share in others:
            (own,) = comfy.samplers.calc_cond_batch(
                args["model"], [cond], args["input"], args["timestep"], args["model_options"]
            )
            mixed = torch.lerp(mixed, own, share.to(own)[:, None, None])
        return [mixed, *rest]

    return mix


class WindowSampler(comfy.samplers.Sampler):
    """The host's sampler slot, filled with one window of a film."""

    def __init__(
        self,
        film: Film,
        noise: NoiseSource,
        cfg: GuidanceCurve,
        on_row: Callable[[RowDone], None],
    ) -> None:
        self.film, self.noise, self.cfg, self.on_row = film, noise, cfg, on_row

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
        film, options = self.film, extra_args["model_options"]
        guided = GuidedVelocity(film, self.cfg, model_wrap, extra_args)
        velocity = cache_velocity(film, guided, options, lambda: self.cfg.at(film.sigma))
        for row in denoise(self.film, velocity, self.noise, noise.device):
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.on_row(row)
        assert self.film.latents is not None
        return self.film.latents


class GuidedVelocity:
    """velocity(x, t) of one window from the host's guider, asked at a nominal noise level.

    The guider answers with denoised = x - sigma * v, so v = (x - denoised) / sigma, whatever sigma
    is. The nominal one is the highest of the latents that move, as far as it falls: where latents
    begin one after another that rises again, and what other nodes do by the share of sampling that
    is over (caches, ranges of conditions) takes that share to go forward only.
    """

    def __init__(
        self, film: Film, cfg: GuidanceCurve, model_wrap: Any, extra_args: dict[str, Any]
    ) -> None:
        self.film, self.cfg, self.model_wrap = film, cfg, model_wrap
        self.model_options, self.seed = extra_args["model_options"], extra_args.get("seed")
        self.window = film.plan.window_at(film.window)
        kept = self.model_options.get("transformer_options", {}).get(KEEPING)
        self.keeper = FrameKeeper(film, kept.keeping) if kept else None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """(1, C, F, h, w) at timesteps (1, F) -> (1, C, F, h, w), guidance included."""
        film = self.film
        options = {**self.model_options.get("transformer_options", {}), FRAME_TIMESTEPS: t}
        options[PROMPT_SHARES] = find_prompts(film.plan, self.window, film.begin, x.shape[2])
        options[KEEPER] = self.keeper
        # At 1 the host leaves the negative prompt's forward out.
        self.model_wrap.set_cfg(self.cfg.at(film.sigma))
        denoised = self.model_wrap(
            x,
            x.new_full((x.shape[0],), film.nominal),
            model_options={**self.model_options, "transformer_options": options},
            seed=self.seed,
        )
        return (x - denoised) / film.nominal
