"""What goes together with frames that rest and are not computed, checked before any work."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import comfy.model_patcher

from ....skyreels_model.budget import kept_bytes
from ....skyreels_model.cache.kept_frames import keeping_of
from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.plan.guidance import FilmGuidance
from ....skyreels_model.plan.resting import most_finished
from ....skyreels_model.plan.retakes import parse_retakes
from ....skyreels_model.rules import refuse
from ..sockets.memory import require_ram
from ..sockets.model import is_causal
from ..sockets.sharing import SHARED
from ..sockets.tea_cache import COMPILED, SETTINGS
from .describe import functions_of, name_of

INSIDE = "diffusion_model"
DISTILLED = "lcm"
PROMPTS = 2  # whose frames are kept, at least, where there is guidance


def check_resting(
    model: comfy.model_patcher.ModelPatcher, plan: FilmPlan, warn: Callable[[str], None]
) -> None:
    """Raise ValueError for a model whose frames at rest cannot be left out, if they are to be.

    And for a film that a model of blocks cannot make; warn of what it was not made for.
    """
    causal = is_causal(model)
    keeping = keeping_of(plan, causal)
    if keeping is None:
        return
    why = "model's variant is causal" if causal else f"finished_frames is {plan.finished_frames}"
    instead = "" if causal else ", or set finished_frames to computed"
    for what, advice in _obstacles(model):
        raise ValueError(f"{why}, and {what}: {advice}{instead}")
    if causal:
        _check_blocks(plan, warn)
    if keeping.storage.in_ram:
        _require_room(model, plan, keeping.storage.itemsize)


def _obstacles(model: comfy.model_patcher.ModelPatcher) -> Iterable[tuple[str, str]]:
    """What a node has done to a model that wants all frames in every call, and what to do."""
    options, given = model.model_options, model.model_options["transformer_options"]
    transformer = model.get_model_object(INSIDE)
    if not isinstance(getattr(transformer, "config", None), ModelConfig):
        kind = type(transformer).__name__
        yield f"model is a {kind} from another loader", "load it with SkyReels-V2 Model Loader"
    without = "connect the model without that node"
    if COMPILED in options:
        yield (
            "a node compiles the model (torch.compile), for a fixed number of frames",
            without,
        )
    if SHARED in given:
        yield "SkyReels-V2 Multi-GPU shares its frames between GPUs", without
    if options.get("context_handler") is not None:
        yield "a node cuts its frames into context windows", without
    if SETTINGS in given:
        yield (
            "model has the published TeaCache, which keeps all frames' answers",
            "set mode to automatic in SkyReels-V2 TeaCache",
        )
    if given.get("easycache") is not None:
        yield "model has EasyCache or LazyCache, which keeps all frames' answers", without
    for function in functions_of([given.get("patches_replace", {}), given.get("patches", {})]):
        yield f"a node changes its blocks or attention ({name_of(function)})", without
    for key, function in model.object_patches.items():
        if key.startswith(INSIDE):
            yield f"a node has replaced {key} by a {name_of(function)}", without


def _check_blocks(plan: FilmPlan, warn: Callable[[str], None]) -> None:
    """A model of blocks sees nothing that comes later, and makes one block after the other."""
    later = [
        "an end image" * plan.end,
        "a clip to lead into" * bool(plan.following),
        "key images" * bool(plan.pictures),
    ]
    named = ", ".join(filter(None, later))
    if named:
        raise ValueError(
            f"model's variant is causal, whose frames see only what is before them, and frames has "
            f"{named}: disconnect it, or use a DF checkpoint"
        )
    if plan.ar_step < plan.steps:
        warn(
            f"The model's variant is causal, and ar_step is {plan.ar_step}: such models were "
            f"trained to finish a block before the next begins. Set ar_step to steps "
            f"({plan.steps}), or use the preset."
        )


def warn_solver(solver: str, guidance: FilmGuidance, warn: Callable[[str], None]) -> None:
    """Warn of a solver, or guidance, that distillations of blocks were not made for."""
    if solver != DISTILLED or guidance.window(0).at(1.0) > 1:
        warn(
            f"The model's variant is causal. Distillations such as Self-Forcing want solver "
            f"{DISTILLED} and cfg 1."
        )


def refuse_leading_in(takes: str) -> None:
    """Raise ValueError where a take is to lead into what follows it, which such a model cannot."""
    for retake in parse_retakes(takes):
        if retake.only:
            raise refuse(
                f"takes has '{retake} only', and model's variant is causal, whose frames see only "
                f"what is before them: leave out 'only', or use a DF checkpoint",
                "takes",
            )


def _require_room(model: comfy.model_patcher.ModelPatcher, plan: FilmPlan, itemsize: int) -> None:
    config = model.get_model_object(INSIDE).config
    needed = PROMPTS * kept_bytes(config, most_finished(plan), *plan.latent_size, itemsize)
    advice = "set it to computed, or make the window smaller"
    require_ram(f"finished_frames {plan.finished_frames}", needed, advice)
