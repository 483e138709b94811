"""The published TeaCache in the host: settings on a MODEL, and a state for each sampling run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import torch
from torch import Tensor

from ....skyreels_model.cache.published import (
    BoundCache,
    Rule,
    TeaCache,
    always_computes,
    find_rule,
)
from ....skyreels_model.grid import SPATIAL_STRIDE
from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.model.network import BlockCache
from ....skyreels_model.rules import require_number
from .. import notice
from .kept import count_prompts

SETTINGS = "skyreels_v2_tea_cache"
RUN, READ, TALLY = (f"{SETTINGS}_{part}" for part in ("run", "read", "tally"))
COMPILED = "torch_compile_kwargs"  # of the host's torch_compile.py
MOSTLY = 0.75  # of the forwards: what is left can hardly be a good film


@dataclass(frozen=True)
class PublishedCache:
    """What a person sets of it.

    threshold: how far the blocks may have moved by the rule's count. start, end: the shares of the
    steps, at their beginning and end, that are always computed, in any case the rule's own number.
    projected: as in `find_rule`. rule: in place of the model's own.
    """

    threshold: float
    start: float = 0.0
    end: float = 0.0
    projected: bool = True
    rule: Rule | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "start", "end"):
            require_number(name, getattr(self, name), 0, 1)

    def choose_rule(self, config: ModelConfig, pixels: int) -> Rule:
        return self.rule or find_rule(config, pixels, self.projected)


def use_published(
    model: comfy.model_patcher.ModelPatcher, settings: PublishedCache
) -> comfy.model_patcher.ModelPatcher:
    """The model with this cache; the one given stays as it is.

    Raises ValueError for a model that cannot have it.
    """
    transformer = model.get_model_object("diffusion_model")
    config = getattr(transformer, "config", None)
    if not isinstance(config, ModelConfig):
        raise ValueError(
            f"model is a {type(transformer).__name__} from another loader; the published TeaCache "
            f"needs a model from SkyReels-V2 Model Loader. Use it, or set mode to automatic"
        )
    settings.choose_rule(config, 0)
    model = model.clone()
    model.model_options["transformer_options"][SETTINGS] = settings
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    model.add_wrapper_with_key(kind, SETTINGS, run_with_state)
    return model


def run_with_state(
    executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *rest: Any,
    **options: Any,
) -> Any:  # fmt: skip
    """The host's wrapper of a sampling run: nothing of another run is there, nor left after it."""
    guider = executor.class_obj
    before = guider.model_options
    if before.get("context_handler") is not None:
        raise ValueError(
            "model has context windows and the published TeaCache, which would mix up what it "
            "keeps of them; connect the model without one of the two"
        )
    guider.model_options = comfy.model_patcher.create_model_options_clone(before)
    given = guider.model_options["transformer_options"]
    config = guider.model_patcher.get_model_object("diffusion_model").config
    pixels = noise.shape[-2] * noise.shape[-1] * SPATIAL_STRIDE**2
    run = given[RUN] = CachedRun(given[SETTINGS], config, pixels, sigmas)
    if COMPILED in before:
        run.bound, given[READ] = outside_graphs()
    film = given.get(TALLY)
    if film is not None:
        film.caches.append(run.cache)
    try:
        out = executor(noise, latent, sampler, sigmas, *rest, **options)
        if film is None:
            Tally([run.cache]).say()
        return out
    finally:
        run.cache.states.clear()
        guider.model_options = before


class CachedRun:
    """The cache of one sampling run, and which of its steps are always computed."""

    def __init__(
        self, settings: PublishedCache, config: ModelConfig, pixels: int, sigmas: Tensor
    ) -> None:
        rule = settings.choose_rule(config, pixels)
        self.bound = BoundCache
        self.cache = TeaCache(rule, settings.threshold)
        self.levels = sigmas.tolist()
        steps = len(self.levels) - 1
        self.first = max(rule.first, math.ceil(settings.start * steps))
        self.last = max(rule.last, math.ceil(settings.end * steps))

    def bind(self, options: Mapping[str, Any]) -> BlockCache:
        """The cache for a forward with these options of the host."""
        # Nodes that skip layers ask for a prompt a second time, with those blocks replaced.
        replaced = frozenset(options.get("patches_replace", {}).get("dit", ()))
        level = float(options["sigmas"][0])
        forced = always_computes(level, self.levels, self.first, self.last)
        keys = [(uuid, replaced) for uuid in options["uuids"]]
        return self.bound(self.cache, keys, forced)


@dataclass
class Tally:
    """What the caches of a run, or of all runs of a film, have skipped."""

    caches: list[TeaCache] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Of the model's forwards, those whose blocks were not run."""
        skipped = sum(cache.skipped for cache in self.caches)
        return skipped / max(1, skipped + sum(cache.computed for cache in self.caches))

    def describe(self) -> str:
        """A line for people; empty where there is no such cache."""
        if not self.caches:
            return ""
        model = self.caches[0].rule.model
        return f"Published TeaCache ({model}): {self.share:.0%} of the model's work skipped"

    def advise(self) -> str:
        """What to do about a threshold that skipped nothing, or most of it; empty otherwise."""
        if not self.caches or 0 < self.share <= MOSTLY:
            return ""
        if not self.share:
            return "SkyReels-V2 TeaCache skipped nothing: raise its threshold"
        return (
            f"SkyReels-V2 TeaCache skipped {self.share:.0%} of the model's work: lower its "
            f"threshold if the film is blurred or loses its motion"
        )

    def say(self) -> None:
        """Both, on the node at work."""
        notice.LOG.info(self.describe())
        notice.show(self.describe())
        if self.advise():
            notice.warn(self.advise())


def read_cache(options: Mapping[str, Any]) -> BlockCache | None:
    """The cache of the run that a forward belongs to; None where it has none.

    Nor where a node calls the model by itself, without saying for which prompts.
    """
    read: Callable[[Mapping[str, Any]], BlockCache | None] = options.get(READ, _read)
    return read(options)


def _read(options: Mapping[str, Any]) -> BlockCache | None:
    run, named = options.get(RUN), options.get("uuids")
    return run.bind(options) if run is not None and named else None


@functools.cache
def outside_graphs() -> tuple[type[BoundCache], Callable[..., Any]]:
    """A kind of `BoundCache`, and `_read`, that no compiler looks into.

    What it decides differs from call to call, and a graph would be made for each. The same ones for
    all runs, or each run would be compiled.
    """
    disable: Callable[[Any], Any] = torch.compiler.disable
    methods = {name: disable(getattr(BoundCache, name)) for name in ("recall", "remember")}
    return type("UncompiledCache", (BoundCache,), methods), disable(_read)


def count_residuals(
    options: Mapping[str, Any], batch: int, conds: Mapping[str, Sequence[Mapping[str, Any]]]
) -> int:
    """For how many samples a run with these transformer options and prompts keeps residuals."""
    return count_prompts(batch, conds) if SETTINGS in options else 0
