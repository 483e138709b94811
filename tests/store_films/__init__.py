"""A small film by a function in place of a model, with or without a store."""

import dataclasses
from pathlib import Path

import torch

from skyreels_model.cache.forecast import Forecast
from skyreels_model.cache.settings import CacheSettings
from skyreels_model.cache.velocity import CachedVelocity
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.retakes import parse_retakes, retake_seeds
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.film import Film
from skyreels_model.rollout.history import new_history
from skyreels_model.rollout.loop import denoise
from skyreels_model.rollout.noise import ShotNoise
from skyreels_model.store.keys import Describer
from skyreels_model.store.manifest import write_manifest
from skyreels_model.store.store import make_film
from skyreels_model.store.takes import TakesOnDisk, retake_keys
from skyreels_model.vae import VideoVAE

PLAN = FilmPlan(
    num_frames=57, width=16, height=16, window=25, overlap=9, steps=6, ar_step=2, history="latents"
)


class Stop(Exception):
    """What ends a run in a test."""


def answer(x, t):
    """A model: another answer at each level, and one that sees all frames."""
    return torch.tanh(x + x.mean(2, keepdim=True)) * (0.5 + t[:, None, :, None, None] / 1000)


@dataclasses.dataclass
class Run:
    """A film by `answer`; `calls` counts what was asked of it, which stops after `limit`.

    prompt: that of each shot, with slashes between, or one for all.
    """

    plan: FilmPlan = PLAN
    conditions: Conditions = dataclasses.field(default_factory=Conditions)
    solver: str = "unipc"
    vae: VideoVAE | None = None
    prompt: str = "a"
    seed: int = 0
    takes: str = ""
    threshold: float = 0.0
    limit: int = 1 << 30
    calls: int = 0

    def noise(self):
        retakes = parse_retakes(self.takes)
        seeds = [self.seed] * max(len(self.plan.shots), 1)
        return ShotNoise(self.plan, *retake_seeds(self.plan, seeds, retakes))

    def prompt_of(self, shot):
        prompts = self.prompt.split("/")
        return prompts[shot % len(prompts)]

    def keys(self, folder=Path("nowhere")):
        noise = self.noise()

        def others(window):
            prompt = self.prompt_of(window.shot)
            return {"prompt": prompt, "seed": noise.seeds(window), "cache": self.threshold}

        describer = Describer(self.plan, self.conditions, self.solver, others)
        return retake_keys(describer, parse_retakes(self.takes), TakesOnDisk(folder))

    def make(self, store=None, afresh=False):
        """(film, session)"""
        if store is None:
            film = Film(self.plan, self.solver, conditions=self.conditions)
            self._make(film, None)
            return film, None
        with store.open(self.keys(store.folder), afresh) as session:
            write_manifest(store.folder, self.plan, session.keys)
            film = Film(self.plan, self.solver, conditions=self.conditions)
            self._make(film, session)
            return film, session

    def _make(self, film, session):
        def velocity(x, t):
            if self.calls == self.limit:
                raise Stop
            self.calls += 1
            shot = self.plan.window_at(film.window).shot
            return answer(x, t) + sum(map(ord, self.prompt_of(shot))) * 0.0005

        policy = Forecast(CacheSettings(threshold=self.threshold))
        noise = self.noise()

        def sample(part):
            asked = CachedVelocity(part, velocity, policy) if self.threshold else velocity
            for _ in denoise(part, asked, noise):
                if session:
                    session.save_row(part)

        with torch.inference_mode():
            make_film(film, sample, new_history(self.plan, self.vae), session)


def latents(film):
    return torch.cat(list(film.finished), dim=2)
