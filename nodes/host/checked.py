"""What reaches a node is what its schema declares; else an error that names the input.

The host checks what is typed into a widget, and lets NaN pass. What comes by a link, or in a prompt
over the API, it checks by the names of types only, or not at all.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_patcher
import torch
from comfy_api.latest import io

from ...skyreels_model.rules import refuse
from .sockets.latent import check_latent
from .sockets.memory import explain_lack
from .tensors import lacks_numbers

Execute = Callable[..., io.NodeOutput]
WITHOUT_ROOM = (
    "choose a smaller or shorter film, a model file in fp8 or GGUF, or close what else uses the "
    "memory"
)
SHOWN = 5  # of a combo's options
ENGINE = "SKYREELS_V2_WORDS,CLIP"
KINDS = {
    "IMAGE": "images",
    "LATENT": "a LATENT",
    "CONDITIONING": "CONDITIONING, as of SkyReels-V2 Prompt",
    "MODEL": "a MODEL, as of SkyReels-V2 Model Loader",
    "CLIP": "a CLIP, as of SkyReels-V2 Text Encoder Loader",
    "VAE": "a VAE, as of SkyReels-V2 VAE Loader",
    "CLIP_VISION": "a CLIP_VISION, as of SkyReels-V2 Image Encoder Loader",
    "SIGMAS": "SIGMAS, as of Basic Scheduler",
    "AUDIO": "AUDIO, as of Load Audio",
    "VIDEO": "a VIDEO, as of Load Video",
    "SKYREELS_V2_SCHEDULE": "a schedule, of SkyReels-V2 Schedule",
    "SKYREELS_V2_FRAMES": "frames, of SkyReels-V2 Frames",
    "SKYREELS_V2_STORYBOARD": "a storyboard, of SkyReels-V2 Storyboard",
    "SKYREELS_V2_STORE": "a store, of SkyReels-V2 Store",
    ENGINE: "a language model, of SkyReels-V2 Language Model Loader, or a CLIP that writes text",
}


def checked(execute: Execute) -> Execute:
    """A node's `execute` that raises ValueError for inputs other than those its schema declares."""

    names = list(inspect.signature(execute).parameters)[1:]

    @functools.wraps(execute)
    def run(cls: type[io.ComfyNode], *given: Any, **values: Any) -> io.NodeOutput:
        values |= dict(zip(names, given, strict=False))  # a program may give them by position
        schema = cls.define_schema()
        for declared in schema.inputs:
            if declared.id not in values:
                continue
            if values[declared.id] is None and declared.optional:
                # As if it were not there: `execute` has a value for that, and it may be another.
                del values[declared.id]
            else:
                check(declared, values[declared.id])
        # Where the parts of a node's work have not said more.
        with explain_lack(schema.display_name, WITHOUT_ROOM):
            return execute(cls, **values)

    return run


def check(declared: io.Input, value: Any) -> None:
    """Raise ValueError unless `value` is one that the declared input takes."""
    name, kind = declared.id, declared.get_io_type()
    if isinstance(declared, io.Combo.Input):
        _check_option(name, value, declared.options or [])
    elif isinstance(declared, (io.Int.Input, io.Float.Input)):
        _check_number(name, value, declared)
    elif isinstance(declared, io.String.Input):
        _require(isinstance(value, str), name, value, "text")
    elif isinstance(declared, io.Boolean.Input):
        _require(isinstance(value, bool), name, value, "true or false")
    elif kind in KINDS:
        _require(fits(kind, value), name, value, KINDS[kind])
        if kind in SHAPES:
            SHAPES[kind](name, value)


def _require(right: bool, name: str, value: Any, wanted: str) -> None:
    if not right:
        raise ValueError(f"{name} is {describe_value(value)}; it must be {wanted}")


def describe_value(value: Any) -> str:
    """A value in a few words, whatever it is."""
    if value is None:
        return "nothing (None)"
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {str(value.dtype)[6:]}"
    if isinstance(value, (bool, int, float, str, bytes)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:50]}… ({len(text)} characters)"
    return f"of type {type(value).__name__}"


def _check_option(name: str, value: Any, options: list[Any]) -> None:
    # A workflow of another system may have its separators.
    known = {str(option).replace("\\", "/") for option in options}
    if isinstance(value, str) and value.replace("\\", "/") in known:
        return
    some = ", ".join(map(str, options[:SHOWN])) or "none"
    more = f" and {len(options) - SHOWN} more" if len(options) > SHOWN else ""
    raise ValueError(f"{name} is {describe_value(value)}; it must be one of: {some}{more}")


def _check_number(name: str, value: Any, declared: Any) -> None:
    whole = isinstance(declared, io.Int.Input)
    kind = numbers.Integral if whole else numbers.Real
    right = isinstance(value, kind) and not isinstance(value, bool)
    # An integer may be too long for math.isfinite.
    right = right and value == value and abs(value) != math.inf
    least, most = declared.min, declared.max
    if right and (least is None or value >= least) and (most is None or value <= most):
        return
    bounds = f" {least} to {most}" if least is not None and most is not None else ""
    wanted = "a whole number" if whole else "a number"
    message = f"{name} is {describe_value(value)}; it must be {wanted}{bounds}"
    if right and bounds:
        raise refuse(message, name, least if value < least else most)
    raise ValueError(message)


# What values of the host's kinds of socket can do, whoever has made them.
METHODS = {
    "CLIP": ("tokenize", "encode_from_tokens_scheduled"),
    "VAE": ("encode", "decode"),
    "CLIP_VISION": ("encode_image",),
    "VIDEO": ("get_components", "get_stream_source"),
}


def fits(kind: str, value: Any) -> bool:
    """Whether a value is of the host's kind of socket, or of ours."""
    if kind == "MODEL":
        return isinstance(value, comfy.model_patcher.ModelPatcher)
    if kind == "VAE" and fits("CLIP", value):
        return False  # a CLIP encodes and decodes, too
    if kind in METHODS:
        return all(hasattr(value, name) for name in METHODS[kind])
    if kind == ENGINE:
        return fits("CLIP", value) or hasattr(value, "sees_pictures")
    if kind == "LATENT":
        return isinstance(value, dict)
    if kind == "AUDIO":
        return isinstance(value, Mapping)  # some nodes open a sound only when it is looked at
    if kind == "CONDITIONING":
        return isinstance(value, list) and bool(value) and all(map(_is_prompt, value))
    if kind.startswith("SKYREELS_V2_"):
        return is_ours(kind, value)
    return isinstance(value, torch.Tensor)


def _is_prompt(entry: Any) -> bool:
    """Whether it is a pair of text (B, L, D) and options."""
    return (
        isinstance(entry, (list, tuple))
        and len(entry) == 2
        and isinstance(entry[0], torch.Tensor)
        and entry[0].ndim == 3
        and isinstance(entry[1], dict)
    )


def is_ours(kind: str, value: Any) -> bool:
    """Whether a value is of one of the pack's own kinds of socket."""
    from ...skyreels_model.plan.film_plan import FilmPlan
    from .film.given import FilmImages
    from .film.shots import FilmShot
    from .film.store import StoreSettings

    if kind == "SKYREELS_V2_SCHEDULE":
        return isinstance(value, FilmPlan)
    if kind == "SKYREELS_V2_FRAMES":
        return isinstance(value, FilmImages)
    if kind == "SKYREELS_V2_STORE":
        return isinstance(value, StoreSettings)
    return isinstance(value, tuple) and all(isinstance(shot, FilmShot) for shot in value)


def _check_sigmas(name: str, sigmas: torch.Tensor) -> None:
    _require_numbers(name, sigmas, KINDS["SIGMAS"])


def _require_numbers(name: str, tensor: torch.Tensor, wanted: str) -> None:
    flaw = lacks_numbers(tensor)
    if flaw:
        raise ValueError(f"{name} has {flaw}; it must be {wanted}, in float32 or float16")


def _check_images(name: str, images: torch.Tensor) -> None:
    _require_numbers(name, images, KINDS["IMAGE"])
    if images.ndim != 4 or not images.numel() or images.shape[3] not in (1, 3, 4):
        raise ValueError(
            f"{name} is {describe_value(images)}; it must be at least one image, (images, height, "
            f"width, channels) with 1, 3 or 4 channels"
        )


def _check_latent(name: str, latent: dict[str, Any]) -> None:
    check_latent(latent, name)


def _check_prompts(name: str, prompts: list[Any]) -> None:
    for text, options in prompts:
        for key, value in options.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(
                    f"{name} has a {key} of {value}; it must be a finite number: the node that set "
                    f"it failed"
                )
            if isinstance(value, torch.Tensor) and not (lacks_numbers(value) or _is_finite(value)):
                raise ValueError(
                    f"{name} has a {key} with numbers that are infinite or not a number; the node "
                    f"that set it failed"
                )
        _require_numbers(name, text, KINDS["CONDITIONING"])
        if not _is_finite(text):
            raise ValueError(
                f"{name} has text that is infinite or not a number; the text encoder failed (try "
                f"another file or format of it)"
            )


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


SHAPES: dict[str, Callable[[str, Any], None]] = {
    "IMAGE": _check_images,
    "LATENT": _check_latent,
    "CONDITIONING": _check_prompts,
    "SIGMAS": _check_sigmas,
}
