"""Model files: which ones the host has, and the toy set that comes with the pack."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import folder_paths

from ...skyreels_model.checkpoint import GGUF, SHARD

TOY_WEIGHTS = pathlib.Path(__file__).resolve().parents[2] / "toy" / "weights"
GGUF_CATEGORY = "skyreels_v2_gguf"
CATEGORIES = ("diffusion_models", "text_encoders", "vae", "clip_vision")


def register_toy_weights() -> None:
    """Make the toy set's files appear in the host's lists as `toy/…`."""
    for category in CATEGORIES:
        folder = TOY_WEIGHTS / category
        if folder.is_dir():
            folder_paths.add_model_folder_path(category, str(folder))


def register_gguf() -> None:
    """Let the host list GGUF files, too, which it does not know, of the diffusion models' folders.

    The list of folders is the host's own, so that folders added later are in it.
    """
    folders = folder_paths.folder_names_and_paths["diffusion_models"][0]
    folder_paths.folder_names_and_paths[GGUF_CATEGORY] = (folders, {GGUF})


def listed(category: str) -> list[str]:
    """The files of a category; of a set of shards only the first, and GGUF files last."""
    return [name for name, _ in _categories_of(category) if not _later_shard(name)]


def _categories_of(category: str) -> list[tuple[str, str]]:
    """Each file that the host has in a category, with the host's own category for it."""
    known = [category]
    if category == "diffusion_models" and GGUF_CATEGORY in folder_paths.folder_names_and_paths:
        known.append(GGUF_CATEGORY)
    return [(name, one) for one in known for name in folder_paths.get_filename_list(one)]


def _later_shard(name: str) -> bool:
    match = SHARD.match(pathlib.PurePath(name).name)
    return match is not None and int(match["index"]) > 1


def located(category: str, name: str) -> pathlib.Path:
    """The path of a listed file; ValueError if the host does not list it (any longer)."""
    own = dict(_categories_of(category)).get(name)
    path = None if own is None else folder_paths.get_full_path(own, name)
    if path is None:
        some = ", ".join(listed(category)[:5]) or "none"
        raise ValueError(f"{name!r} is not among ComfyUI's {category} files (there are: {some})")
    return pathlib.Path(path)


@contextlib.contextmanager
def naming(name: str, value: str) -> Iterator[None]:
    """Say of any ValueError inside which input, with which value, it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name} {value!r}: {error}") from error
