"""Model files: which ones the host has, and the toy set that comes with the pack."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import struct
from collections.abc import Iterator

import folder_paths

from ...skyreels_model.files.checkpoint import SHARD
from ...skyreels_model.files.formats import GGUF, PICKLED, SAFETENSORS

TOY_WEIGHTS = pathlib.Path(__file__).resolve().parents[2] / "toy" / "weights"
DIFFUSERS_CATEGORY = "skyreels_v2_diffusers"
GGUF_CATEGORIES = {
    "diffusion_models": "skyreels_v2_gguf",
    "text_encoders": "skyreels_v2_gguf_text_encoders",
}
LANGUAGE_MODELS = "language models"  # those of text encoders, and of other packs' folder for them
LLM, LLM_CATEGORY = "LLM", "skyreels_v2_llm"
# Where a whole repository, original or -Diffusers, has what a category is for.
PARTS = {
    category: re.compile(rf"(^|/){pattern}$")
    for category, pattern in (
        ("diffusion_models", r"transformer/[^/]+\.(safetensors|bin)"),
        ("text_encoders", r"(models_t5_[^/]+\.pth|text_encoder/[^/]+\.(safetensors|bin))"),
        ("vae", r"(Wan2\.1_VAE\.pth|vae/[^/]+\.(safetensors|bin))"),
        ("clip_vision", r"(models_clip_[^/]+\.pth|image_encoder/[^/]+\.(safetensors|bin))"),
    )
}
# What a file that is damaged in some place nobody thought of makes Python raise.
UNFORESEEN = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError,
    RecursionError, TypeError, re.error, struct.error,
)  # fmt: skip
CALIBRATIONS = "skyreels_v2_calibration"  # also the folder's name, in the models folder
CATEGORIES = ("diffusion_models", "text_encoders", "vae", "clip_vision", "loras")


def register_toy_weights() -> None:
    """Make the toy set's files appear in the host's lists as `toy/…`."""
    for category in CATEGORIES:
        folder = TOY_WEIGHTS / category
        if folder.is_dir():
            folder_paths.add_model_folder_path(category, str(folder))


def register_more_files() -> None:
    """Let the host list GGUF files and whole -Diffusers repositories, of which it knows neither.

    The lists of folders are the host's own, so that folders added later are in them.
    """
    known = folder_paths.folder_names_and_paths
    for category, packed in GGUF_CATEGORIES.items():
        known[packed] = (known[category][0], {GGUF})
    known[DIFFUSERS_CATEGORY] = (known["diffusers"][0], set(SAFETENSORS + PICKLED))
    own = [os.path.join(folder_paths.models_dir, LLM)]
    known[CALIBRATIONS] = ([os.path.join(folder_paths.models_dir, CALIBRATIONS)], {".json"})
    known[LLM_CATEGORY] = (known[LLM][0] if LLM in known else own, set(SAFETENSORS))


def list_files(category: str) -> list[str]:
    """The files for a category, its own first; of a set of shards only the first."""
    names = dict.fromkeys(_use_slashes(name) for name, _ in _categories_of(category))
    return [name for name in names if not _is_later_shard(name)]


def _use_slashes(name: str) -> str:
    """A listed name as workflows of every system have it; Windows lists with backslashes."""
    return name.replace("\\", "/")


def check_listed(name: str, category: str, value: object) -> bool | str:
    """A node's answer to the host's question whether a file may be chosen: True, or why not.

    Of the value's separators any will do. None, for what comes by a link, is judged when it is
    there. A prompt over the API may have anything in a name's place.
    """
    if value is None or (isinstance(value, str) and _find(category, value) is not None):
        return True
    some = ", ".join(list_files(category)[:5]) or "none, put one there"
    return f"{name} is {value!r}; it must be one of ComfyUI's {category} files: {some}"


def _find(category: str, name: str) -> tuple[str, str] | None:
    """The file's name as the host has it, and the host's category for it; None if not listed."""
    known = _categories_of(category)
    exact = next((entry for entry in known if entry[0] == name), None)
    wanted = _use_slashes(name)
    # Of equal names the first: what is in the category's own folder.
    return exact or next((entry for entry in known if _use_slashes(entry[0]) == wanted), None)


def _categories_of(category: str) -> list[tuple[str, str]]:
    """Each file that the host has for a category, with the host's own category for it."""
    known = folder_paths.folder_names_and_paths
    if category == LANGUAGE_MODELS:
        return [
            (name, each)
            for each in ("text_encoders", LLM_CATEGORY)
            if each in known
            for name in folder_paths.get_filename_list(each)
            if name.endswith(SAFETENSORS)
        ]
    found = [(name, category) for name in folder_paths.get_filename_list(category)]
    packed = GGUF_CATEGORIES.get(category)
    if packed in known:
        found += [(name, packed) for name in folder_paths.get_filename_list(packed)]
    part = PARTS.get(category)
    if part is None:
        return found
    for other in ("diffusion_models", DIFFUSERS_CATEGORY):
        if other in known and other != category:
            names = folder_paths.get_filename_list(other)
            found += [(name, other) for name in names if part.search(_use_slashes(name))]
    return found


def _is_later_shard(name: str) -> bool:
    match = SHARD.match(name.rpartition("/")[2])
    return match is not None and int(match["index"]) > 1


def is_models_folder(folder: pathlib.Path) -> bool:
    """Whether this is one of the folders that the host searches: what is above is not its."""
    known = folder_paths.folder_names_and_paths.values()
    return folder.resolve() in {
        pathlib.Path(path).resolve() for paths, _ in known for path in paths
    }


def find_file(category: str, name: str) -> pathlib.Path:
    """The path of a listed file; ValueError if the host does not list it (any longer)."""
    found = _find(category, name)
    if found is None:
        some = ", ".join(list_files(category)[:5]) or "none"
        raise ValueError(f"it is not among ComfyUI's {category} files (there are: {some})")
    path = folder_paths.get_full_path(found[1], found[0])
    if path is None:
        raise ValueError("it cannot be opened: it is a link to nowhere, or was just deleted")
    return pathlib.Path(path)


@contextlib.contextmanager
def name_errors(name: str, value: str) -> Iterator[None]:
    """Say of any error that a file can cause which input, with which value, it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name} {value!r}: {error}") from error
    except UNFORESEEN as error:
        raise ValueError(
            f"{name} {value!r}: loading it failed ({type(error).__name__}: {error}); the file is "
            f"damaged, or made in a way that is not known here"
        ) from error
