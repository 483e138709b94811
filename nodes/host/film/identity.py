"""What decides each window of a film besides its plan, by what a person calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import comfy.model_patcher
import comfy.sd

from ....skyreels_model.plan.prompts import find_prompts
from ....skyreels_model.plan.windows import Window
from ....skyreels_model.store.digests import digest
from .cache import identify_cache
from .describe import Describer

if TYPE_CHECKING:
    from .sampling import FilmMaker

Patcher = comfy.model_patcher.ModelPatcher


class FilmIdentity:
    """The digests of what decides a film's windows, each made once.

    Two runs with equal ones make equal films.
    """

    def __init__(self, maker: FilmMaker, vae: comfy.sd.VAE | None) -> None:
        self.maker = maker
        uses_vae = maker.plan.history != "latents"
        self.vae = identify_vae(vae) if uses_vae and vae is not None else None
        self.models = {id(model): identify_model(model) for model in maker.models()}
        self.states = self._read_states()
        self.prompts = [identify_prompt(shot.positive) for shot in maker.shots]
        self.negative = identify_prompt(maker.negative)

    def window(self, window: Window) -> Mapping[str, Any]:
        maker, model = self.maker, self.maker.model_of(window)
        shown = find_prompts(maker.plan, window, 0, window.length)
        return {
            "model": self.models[id(model)],
            "prompt": [[self.prompts[shot], share] for shot, share in shown],
            "negative prompt": self.negative,
            "cfg": maker.guidance.window(window.index),
            "seed": maker.noise.seeds(window),
            "cache": identify_cache(model.model_options),
            "vae": self.vae,
        }

    def remembers(self) -> bool:
        """Whether a node's function has come to know something that is not in `Film`."""
        return self._read_states() != self.states

    def _read_states(self) -> list[str]:
        models = {id(model): model for model in self.maker.models()}
        return [
            digest(Describer(state=True).describe_model(model, weights=False))
            for model in models.values()
        ]


def identify_vae(vae: comfy.sd.VAE) -> str:
    """The digest of a VAE: what it is, its weights, and what they are computed in."""
    described = Describer()
    weights = vae.first_stage_model.state_dict()
    kind = described.describe(type(vae.first_stage_model))
    found = {name: described.describe(weight) for name, weight in weights.items()}
    return digest([kind, found, str(vae.vae_dtype)])


def identify_model(model: Patcher) -> str:
    """The digest of a MODEL, the same whether it is loaded or not."""
    return digest(Describer().describe_model(model))


def identify_prompt(conditioning: list[Any]) -> str:
    """The digest of a prompt, of all numbers of its tensors."""
    return digest(Describer(whole=True).describe(conditioning))
