"""Films on disk in the host: where they lie, what decides a window, and what is told of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths

from ....skyreels_model.budget import GB
from ....skyreels_model.rollout.film import Film
from ....skyreels_model.rules import refusal, require_number
from ....skyreels_model.store.keys import window_keys
from ....skyreels_model.store.store import FilmStore, Session
from ..sockets.tea_cache import SETTINGS as PUBLISHED
from .identity import FilmIdentity

if TYPE_CHECKING:
    from .sampling import FilmMaker

FILMS = "skyreels_v2_films"  # in the host's output folder
LONGEST_NAME = 80
LONGEST_BYTES = 240  # which file systems count, of 255
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udfff]+')
# Devices, on Windows, with any ending.
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.I)
BOUNDS = {"save_every": (0.0, 3600.0)}
MB = 10**6


@dataclass(frozen=True)
class StoreSettings:
    """What a person sets: the film's name, how often it is saved, and whether to begin anew."""

    name: str
    save_every: float
    afresh: bool

    def __post_init__(self) -> None:
        require_number("save_every", self.save_every, *BOUNDS["save_every"])
        film_folder(self.name)


def films_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / FILMS


def film_folder(name: str) -> Path:
    """The folder of a film. Raises ValueError for what is no name of a folder everywhere."""
    legal = _nearest_name(name)
    if legal != name:
        rule = f"1 to {LONGEST_NAME} letters that are legal in a folder's name, without / or \\"
        raise refusal("name", f"{name[:40]}…" if len(name) > 41 else name, rule, legal)
    return films_folder() / name


def _nearest_name(name: str) -> str:
    """The nearest name that a folder can have on any system."""
    legal = FORBIDDEN.sub("_", name).strip()[:LONGEST_NAME]
    legal = legal.encode()[:LONGEST_BYTES].decode(errors="ignore").strip(" .").strip()
    if DEVICES.match(legal):
        legal = f"_{legal}"[:LONGEST_NAME]
    return legal or "film"


def list_films() -> str:
    """All films on disk with their sizes, a line each."""
    folder = films_folder()
    films = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []
    if not films:
        return f"no films on disk yet; they will lie in output/{FILMS}"
    lines = []
    for film in films:
        files = sorted(film.glob("*.safetensors"))
        size = sum(map(_size, files))
        windows = sum(file.name.startswith("window_") for file in files)
        shown = f"{size / GB:.1f} GB" if size >= GB else f"{size / MB:.2g} MB"
        lines.append(f"{film.name}: {windows} windows, {shown}")
    return "\n".join([f"films in output/{FILMS}:", *lines])


def _size(file: Path) -> int:
    """In bytes; 0 of one that another run has just removed."""
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0


@contextlib.contextmanager
def open_store(
    settings: StoreSettings | None, film: Film, maker: FilmMaker, vae: comfy.sd.VAE | None
) -> Iterator[Session | None]:
    """The store of a film that is about to be made; None without settings."""
    if settings is None:
        yield None
        return
    identity = FilmIdentity(maker, vae)
    keys = window_keys(film.plan, film.conditions, film.solver, identity.window)
    cached = any(map(keeps_state, maker.models()))
    rows = (lambda: False) if cached else lambda: not identity.remembers()
    store = FilmStore(film_folder(settings.name), settings.save_every, rows)
    with store.open(keys, settings.afresh) as session:
        yield session


def keeps_state(model: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a model has a cache that keeps what it knows of a window to itself."""
    return bool({PUBLISHED, "easycache"} & set(model.model_options["transformer_options"]))


def sample_saved(maker: FilmMaker, film: Film, session: Session | None) -> None:
    """Denoise the film's current window; a cancelled one is saved as far as it is."""
    try:
        maker.sample_window(film, session.save_row if session else None)
    except comfy.model_management.InterruptProcessingException:
        if session and film.row:
            session.save_row_now(film)
        raise


def describe_session(session: Session, settings: StoreSettings) -> str:
    """What was found on disk and what was made, for people."""
    windows = len(session.keys)
    lines = [
        f"{settings.name}: {session.kept} of {windows} windows were on disk, {session.made} made"
    ]
    if session.changed:
        lines.append(f"not as they were: {', '.join(session.changed)}")
    lines += [f"{text}: made anew" for text in session.damaged]
    return "\n".join(lines)
