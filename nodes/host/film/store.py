"""Films on disk in the host: where they lie, what decides a window, and what is told of them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import folder_paths

from ....skyreels_model.budget import GB
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.plan.retakes import parse_retakes, retake_seeds
from ....skyreels_model.rollout.film import Film
from ....skyreels_model.rollout.noise import ShotNoise
from ....skyreels_model.rollout.parts import Decode, MemorySink, Sink
from ....skyreels_model.rules import refusal, require_number
from ....skyreels_model.store.keys import Describer
from ....skyreels_model.store.manifest import StoredFilm, read_manifest, write_manifest
from ....skyreels_model.store.recording import VIDEOS, Recorder, segment_paths
from ....skyreels_model.store.store import FilmStore, Session
from ....skyreels_model.store.takes import TakesOnDisk, describe_takes, retake_keys
from ....skyreels_model.store.windows import DiskSink
from ....skyreels_model.video.codecs import VideoSettings
from ....skyreels_model.video.segments import SegmentFolder, alike
from ..sockets.tea_cache import SETTINGS as PUBLISHED
from .identity import FilmIdentity, identify_vae

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
    """What a person sets: the film's name, how often it is saved, whether to begin anew.

    watch: whether each window is written as a video, too, as soon as it is finished. takes: what
    of it is made again, and which take of it is shown.
    """

    name: str
    save_every: float
    afresh: bool
    watch: bool = False
    takes: str = ""

    def __post_init__(self) -> None:
        require_number("save_every", self.save_every, *BOUNDS["save_every"])
        parse_retakes(self.takes)
        film_folder(self.name)
        if self.watch:
            VideoSettings()


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


def list_films(settings: StoreSettings) -> str:
    """All films on disk with their sizes, a line each, and the takes of the one that is set."""
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
    takes = list_takes(settings)
    told = [f"{settings.name}:", *takes] if takes else []
    return "\n".join([f"films in output/{FILMS}:", *lines, *told])


def _size(file: Path) -> int:
    """In bytes; 0 of one that another run has just removed."""
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0


@contextlib.contextmanager
def open_store(
    settings: StoreSettings | None,
    film: Film,
    maker: FilmMaker,
    vae: comfy.sd.VAE | None,
    extends: bool,
) -> Iterator[Session | None]:
    """The store of a film that is about to be made; None without settings.

    extends: whether the film goes on from a clip.
    """
    if settings is None:
        yield None
        return
    identity = FilmIdentity(maker, vae)
    describer = Describer(film.plan, film.conditions, film.solver, identity.window)
    folder = film_folder(settings.name)
    keys = retake_keys(describer, parse_retakes(settings.takes), TakesOnDisk(folder))
    cached = any(map(keeps_state, maker.models())) or maker.is_causal()
    kept = film.plan.keeps_frames

    def rows() -> bool:
        """Whether a window may be saved at the row that is next: what is kept is not."""
        again = not kept or film.row % film.plan.refresh_every == 0
        return not cached and again and not identity.remembers()

    store = FilmStore(folder, settings.save_every, rows)
    with store.open(keys, settings.afresh) as session:
        write_manifest(store.folder, film.plan, keys, extends)
        yield session


def open_recorder(
    settings: StoreSettings | None,
    session: Session | None,
    film: Film,
    vae: comfy.sd.VAE | None,
    extends: bool,
    to_frames: Decode,
) -> Recorder | None:
    """What writes the film's windows as videos; None where that is not asked for.

    to_frames: normalised latents to frames in 0..1. Raises ValueError where that needs a VAE.
    """
    if settings is None or session is None or not settings.watch:
        return None
    if vae is None:
        raise ValueError(
            "store has watch on, which needs a VAE to make frames; connect one to vae, or turn "
            "watch off"
        )
    folder = film_folder(settings.name)
    segments = open_segments(folder, VideoSettings(), Fraction(film.plan.fps), vae)
    names = [f"window_{key.name}" for key in session.keys]
    return Recorder(segments, film, names, extends, to_frames)


def open_segments(
    folder: Path, settings: VideoSettings, rate: Fraction, vae: comfy.sd.VAE
) -> SegmentFolder:
    """Where videos of a film's windows lie that are coded so, of the frames of this VAE."""
    return SegmentFolder(folder / VIDEOS, settings, rate, identify_vae(vae)[:8])


def find_segments(
    film: StoredFilm, settings: VideoSettings, rate: Fraction, vae: comfy.sd.VAE
) -> list[Path]:
    """The videos of all parts of a film, where they are there and can be joined; else none."""
    segments = open_segments(film.folder, settings, rate, vae)
    names = [Path(name).stem for name in film.windows]
    paths = segment_paths(segments, film.plan, names, film.count, film.extends)
    return paths if alike(paths) else []


def latent_sink(settings: StoreSettings | None) -> Callable[[], Sink]:
    """What a film's latents are gathered in: with a store on its disk, not in RAM."""
    if settings is None:
        return MemorySink
    folder = film_folder(settings.name)
    return lambda: DiskSink(folder)


def open_stored(settings: StoreSettings) -> StoredFilm:
    """A film on disk, as far as it is there. Raises ValueError where nothing of it is."""
    name = settings.name
    try:
        film = read_manifest(film_folder(name))
    except FileNotFoundError:
        raise ValueError(
            f"store is the film {name!r}, which is not on the disk; make it with SkyReels-V2 "
            f"Sampler, or choose one of the films that SkyReels-V2 Store lists"
        ) from None
    if not film.count:
        raise ValueError(
            f"store is the film {name!r}, of which no window is finished yet; queue it again"
        )
    return film


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
    return "\n".join([*lines, *list_takes(settings)])


def list_takes(settings: StoreSettings) -> list[str]:
    """The takes of a film that are on disk beside one another, and how to choose one."""
    with contextlib.suppress(ValueError, OSError):
        lines = describe_takes(read_manifest(film_folder(settings.name)))
        if lines:
            first = lines[0].split(" has ")[0]
            return [*lines, f"to choose one, write '{first}: take 1' into takes of the store"]
    return []


def film_noise(plan: FilmPlan, seeds: Sequence[int], store: StoreSettings | None) -> ShotNoise:
    """The film's noise; seeds: of its shots, unless they are retaken."""
    return ShotNoise(plan, *retake_seeds(plan, seeds, parse_retakes(store.takes if store else "")))
