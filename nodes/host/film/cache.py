"""The cache of model calls: how its settings travel on a MODEL, and what it did, for people."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import folder_paths

from ....skyreels_model.cache.curves import Curves, read_curves
from ....skyreels_model.cache.forecast import RULE, Calibrate, Forecast
from ....skyreels_model.cache.settings import CacheSettings
from ....skyreels_model.cache.velocity import CachedVelocity
from ....skyreels_model.files.checkpoint import published_name
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.rollout.film import Film, Velocity
from .. import files, notice
from ..sockets.tea_cache import SETTINGS as PUBLISHED
from ..sockets.tea_cache import PublishedCache, use_published

SETTINGS = "skyreels_v2_cache"
CALIBRATE, CURVES = "skyreels_v2_calibrate", "skyreels_v2_curves"
OURS = "skyreels_v2_film"  # in the options of a model that our sampler runs
NONE = "none"  # in place of a calibration
NEARLY_ALL = 0.75  # of the model calls, above which a film is more forecast than made


def add_cache(
    model: comfy.model_patcher.ModelPatcher, settings: CacheSettings
) -> comfy.model_patcher.ModelPatcher:
    """The model with the cache's settings on it; the one given stays as it is.

    Raises ValueError where it has some already.
    """
    refuse_second(model)
    cached = model.clone()
    cached.model_options["transformer_options"][SETTINGS] = settings
    kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
    cached.add_wrapper_with_key(kind, SETTINGS, warn_other_samplers)
    return cached


def add_calibration(
    model: comfy.model_patcher.ModelPatcher,
) -> comfy.model_patcher.ModelPatcher:
    """The model, of which a film is to measure how its answers change; as `add_cache`."""
    refuse_second(model)
    measured = model.clone()
    measured.model_options["transformer_options"][CALIBRATE] = True
    return measured


def read_calibration(name: str) -> Curves | None:
    """What a listed file tells of a model; None of `NONE`. Raises ValueError where it cannot."""
    if name == NONE:
        return None
    with files.name_errors("calibration", name):
        return read_curves(files.find_file(files.CALIBRATIONS, name))


def write_calibration(
    model: comfy.model_patcher.ModelPatcher, curves: Curves, plan: FilmPlan
) -> str:
    """Put down what a film has measured of a model, beside the models; a line for people."""
    if curves.empty:
        return (
            "Calibration: nothing was measured, for the film was on disk already, or has fewer "
            "than three steps"
        )
    made = model.cached_patcher_init
    path = Path(made[1][0]) if made else None
    name = legal_name(published_name(path)) if path else "model"
    folder = Path(folder_paths.folder_names_and_paths[files.CALIBRATIONS][0][0])
    about = {"model": name, "steps": plan.steps, "shift": plan.shift, "ar_step": plan.ar_step}
    curves.write(folder / f"{name}.json", about)
    return (
        f"Calibration written to models/{files.CALIBRATIONS}/{name}.json: choose it in "
        f"SkyReels-V2 TeaCache (press R to see it there)"
    )


def legal_name(text: str) -> str:
    """As a file can be named on any system."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._")[:80] or "model"


def add_published(
    model: comfy.model_patcher.ModelPatcher, settings: CacheSettings, projected: bool
) -> comfy.model_patcher.ModelPatcher:
    """As `add_cache`, with the published TeaCache; projected: as in its `find_rule`.

    Raises ValueError, too, for a model that it cannot serve.
    """
    refuse_second(model)
    published = PublishedCache(settings.threshold, settings.start, settings.end, projected)
    cached = use_published(model, published)
    return cached if settings.threshold else model


def refuse_second(model: comfy.model_patcher.ModelPatcher) -> None:
    """Raise ValueError for a model that has a cache already."""
    options = model.model_options["transformer_options"]
    if {SETTINGS, PUBLISHED, CALIBRATE} & set(options):
        raise ValueError(
            "model has a SkyReels-V2 TeaCache already; it can have one: use one of the two nodes"
        )
    if "easycache" in options:
        raise ValueError(
            "model has EasyCache or LazyCache already; a cache of a cache adds up their errors: "
            "use one of the two nodes"
        )


def read_options(model: comfy.model_patcher.ModelPatcher) -> dict[str, Any]:
    """What a MODEL carries for its transformer."""
    options: dict[str, Any] = model.model_options["transformer_options"]
    return options


def find_settings(model_options: dict[str, Any]) -> CacheSettings | None:
    """The settings that a model carries, if it does."""
    settings: CacheSettings | None = model_options["transformer_options"].get(SETTINGS)
    return settings


def identify_cache(model_options: dict[str, Any]) -> tuple[int, CacheSettings] | None:
    """All that decides which model calls are forecast, of a model that has a cache."""
    settings = find_settings(model_options)
    return (RULE, settings) if settings else None


def warn_other_samplers(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The host's hook around a run of any sampler: say so where the cache does nothing."""
    if not executor.class_obj.model_options["transformer_options"].get(OURS):
        notice.warn(
            "SkyReels-V2 TeaCache in mode automatic works in SkyReels-V2 Sampler only. This "
            "sampler makes all of its model calls."
        )
    return executor(*args, **kwargs)


def cache_velocity(
    film: Film, velocity: Velocity, model_options: dict[str, Any], guidance: Callable[[], float]
) -> Velocity:
    """The velocity with the cache that its model carries around it, if it does."""
    curves = model_options["transformer_options"].get(CURVES)
    if curves is not None:
        return CachedVelocity(film, velocity, Calibrate(curves), guidance)
    settings = find_settings(model_options)
    if settings is None or not settings.threshold:
        return velocity
    return CachedVelocity(film, velocity, Forecast(settings), guidance)


def describe_calls(calls: int, skipped: int) -> str:
    """What became of a film's model calls, in a line for people."""
    if not skipped:
        return f"{calls} model calls, all computed"
    return f"{calls} model calls, {skipped} of them forecast ({skipped / calls:.0%})"


def judge_calls(calls: int, skipped: int, cached: bool) -> str:
    """What to do about a threshold that skipped nothing, or nearly all; empty if it is neither."""
    if cached and not skipped:
        return (
            "SkyReels-V2 TeaCache forecast nothing: raise its threshold, or lower its start and end"
        )
    if skipped > NEARLY_ALL * calls:
        return (
            f"SkyReels-V2 TeaCache forecast {skipped / calls:.0%} of the model calls: lower its "
            f"threshold if the film is blurred or loses its motion"
        )
    return ""
