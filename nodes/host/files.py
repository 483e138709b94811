"""Model files: which ones the host has, and the toy set that comes with the pack."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import folder_paths

from ...skyreels_model.checkpoint import SHARD

TOY_WEIGHTS = pathlib.Path(__file__).resolve().parents[2] / "toy" / "weights"
CATEGORIES = ("diffusion_models", "text_encoders", "vae", "clip_vision")


def register_toy_weights() -> None:
    """Make the toy set's files appear in the host's lists as `toy/…`."""
    for category in CATEGORIES:
        folder = TOY_WEIGHTS / category
        if folder.is_dir():
            folder_paths.add_model_folder_path(category, str(folder))


def listed(category: str) -> list[str]:
    """The host's files of a category; of a set of shards only the first."""
    return [name for name in folder_paths.get_filename_list(category) if not _later_shard(name)]


def _later_shard(name: str) -> bool:
    match = SHARD.match(pathlib.PurePath(name).name)
    return match is not None and int(match["index"]) > 1


def located(category: str, name: str) -> pathlib.Path:
    """The path of a listed file; ValueError if the host does not list it (any longer)."""
    path = folder_paths.get_full_path(category, name)
    if path is None or name not in folder_paths.get_filename_list(category):
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
