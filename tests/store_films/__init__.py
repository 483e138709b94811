"""A small film by a function in place of a model, with or without a store."""

import dataclasses

import torch

from skyreels_model.cache.forecast import Forecast
from skyreels_model.cache.settings import CacheSettings
from skyreels_model.cache.velocity import CachedVelocity
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.film import Film
from skyreels_model.rollout.history import new_history
from skyreels_model.rollout.loop import denoise
from skyreels_model.rollout.noise import SeededNoise
from skyreels_model.store.keys import window_keys
from skyreels_model.store.store import make_film
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
    """A film by `answer`; `calls` counts what was asked of it, which stops after `limit`."""

    plan: FilmPlan = PLAN
    conditions: Conditions = dataclasses.field(default_factory=Conditions)
    solver: str = "unipc"
    vae: VideoVAE | None = None
    prompt: str = "a"
    seed: int = 0
    threshold: float = 0.0
    limit: int = 1 << 30
    calls: int = 0

    def keys(self):
        others = {"prompt": self.prompt, "seed": self.seed, "cache": self.threshold}
        return window_keys(self.plan, self.conditions, self.solver, lambda window: others)

    def make(self, store=None, afresh=False):
        """(film, session)"""
        if store is None:
            film = Film(self.plan, self.solver, conditions=self.conditions)
            self._make(film, None)
            return film, None
        with store.open(self.keys(), afresh) as session:
            film = Film(self.plan, self.solver, conditions=self.conditions)
            self._make(film, session)
            return film, session

    def _make(self, film, session):
        def velocity(x, t):
            if self.calls == self.limit:
                raise Stop
            self.calls += 1
            return answer(x, t) + len(self.prompt) * 0.01

        policy = Forecast(CacheSettings(threshold=self.threshold))
        asked = CachedVelocity(film, velocity, policy) if self.threshold else velocity

        def sample(film):
            for _ in denoise(film, asked, SeededNoise(self.seed)):
                if session:
                    session.save_row(film)

        with torch.inference_mode():
            make_film(film, sample, new_history(self.plan, self.vae), session)


def latents(film):
    return torch.cat(list(film.finished), dim=2)
