"""The folder of a film: its windows as they are finished, and the one at work.

Every file is named after its window's key, and holds what that key stands for. So a film that is
changed finds what still holds and makes the rest beside it, and one that is changed back finds all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout  # PyTorch's own requirement
from torch import Tensor

from ..rollout.film import Film, Tail
from ..rollout.history import History
from ..rollout.loop import advance, carry_over, close_window, finish_window
from ..rules import refuse
from . import files
from .keys import WindowKey
from .state import brings_enough, pack_row, pack_window, unpack_row, unpack_tail
from .takes import TakesOnDisk
from .windows import StoredWindows

LOCK = "in_use.lock"
EVERY = 60.0  # seconds between two savings of a window at work
SHARE = 0.01  # of a film's time that saving it may take


class FilmStore:
    """One film's folder, for one writer at a time.

    every: seconds from one saving of the window at work to the next, or more where all that was
    saved would take more than `SHARE` of the time; 0 is after every model call. rows:
    whether that can be saved now, which it cannot where a model remembers of a window what is not
    in `Film`.
    """

    def __init__(
        self, folder: Path, every: float = EVERY, rows: Callable[[], bool] = lambda: True
    ) -> None:
        self.folder, self.every, self.rows = folder, every, rows

    @contextlib.contextmanager
    def open(self, keys: Sequence[WindowKey], afresh: bool = False) -> Iterator[Session]:
        """The folder, made where it is not there, for a film with these windows.

        afresh: what is there is not used, and replaced where a window has the same key. Raises
        ValueError where another run writes into it, OSError where it cannot be written.
        """
        lock = self._lock()
        try:
            for left in sorted(self.folder.glob(f"*{files.UNFINISHED}")):
                files.remove(left)
            yield Session(self, keys, afresh)
        finally:
            lock.release()

    def _lock(self) -> BaseFileLock:
        """The folder's lock, taken."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / LOCK)
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"the film in {self.folder.name} is being made by another run; wait for that, or "
                f"give this film another name"
            ) from None
        except (OSError, NotImplementedError) as error:
            raise OSError(
                f"the film cannot be saved in {self.folder} ({error}); it must be a folder that "
                f"ComfyUI may write to"
            ) from error
        return lock

    def list_rows(self, window: str = "") -> list[Path]:
        """The files of a window at work, or of all."""
        kinds = ("row", "passed")
        found = (self.folder.glob(f"{kind}_{window}*{files.ENDING}") for kind in kinds)
        return [path for paths in found for path in sorted(paths)]

    def path(self, kind: str, key: WindowKey, number: int | None = None) -> Path:
        """The file of a window: `kind` is window, row or passed."""
        part = "" if number is None else f"_{number:06d}"
        return self.folder / f"{kind}_{key.name}{part}{files.ENDING}"


class Session:
    """A film being made, and its folder.

    kept, made: how many windows were found, and made. damaged: what was found and is not as it was
    written, in words. changed: why the first window that was not found was not, if another was.
    """

    def __init__(self, store: FilmStore, keys: Sequence[WindowKey], afresh: bool) -> None:
        self.store, self.keys, self.afresh = store, keys, afresh
        self.kept = self.made = 0
        self.damaged: list[str] = []
        self.changed: list[str] = []
        # Seconds: for the last saving of a window at work, and for all that was saved.
        self.took = self.spent = 0.0
        self.opened_at = time.monotonic()
        # Of the window at work: when it was saved, how many rows of the film had been forecast
        # before it, and where the files with latents that have left the view begin.
        self.saved_at, self.skipped = time.monotonic(), 0
        self.passed, self.latents_saved = list[int](), 0
        self.windows = StoredWindows(self.read_latents)
        self.disk = TakesOnDisk(store.folder)
        # A run may have ended between saving a window and removing its rows.
        self.windows_with_rows = {path.stem.split("_", 1)[1] for path in store.list_rows()}

    def recall(self, film: Film, history: History | None = None) -> bool:
        """Put the current window, finished before, among the film's; False where it is not there.

        history: for a film that goes on where the one that was saved ended.
        """
        self._begin_window(film)
        index = film.window
        found = self._read("window", self.keys[index])
        if found is None:
            self.changed = self.changed or self.explain(index)
            return False
        tensors, about = found
        film.reference, latents = tensors.get("reference"), tensors["latents"]
        film.skipped += about["skipped"]
        advance(film, latents, *_hand_on(film, tensors, about, history))
        self.windows.settle()
        self.kept += 1
        if any(name.startswith(self.keys[index].name) for name in self.windows_with_rows):
            self._remove_rows(self.keys[index])
        return True

    def _begin_window(self, film: Film) -> None:
        self.saved_at, self.skipped = time.monotonic(), film.skipped
        self.passed, self.latents_saved = [], 0

    def lead_into(
        self, film: Film, sample_window: Callable[[Film], None], history: History | None
    ) -> None:
        """Make the current window so that it ends as the one that what follows hangs on.

        That one's last latents, as many as the overlap, stay as they are, and so does all that it
        hands on. history: for a film that was saved without that.
        """
        key = self.keys[film.window]
        old = WindowKey(key.index, key.leads_into, {}, taken=True)
        tensors, about = self._require(old)
        kept = tensors["latents"][:, :, -film.plan.overlap_latents :]
        plan = dataclasses.replace(film.plan, kept_end=film.window)
        conditions = dataclasses.replace(film.conditions, end=None, following=kept)
        part = dataclasses.replace(film, plan=plan, conditions=conditions)
        self.resume(part)
        sample_window(part)
        latents = torch.cat([close_window(part).cpu(), kept], dim=2)
        film.skipped, film.reference = part.skipped, tensors.get("reference", part.reference)
        advance(film, latents, *_hand_on(film, tensors, about, history))

    def resume(self, film: Film) -> bool:
        """Put the rows of the current window that were saved into the film, if there are any."""
        key = self.keys[film.window]
        found = self._read("row", key) if self.store.rows() else None
        parts = [
            self._read("passed", key, first) for first in (found[1]["passed"] if found else [])
        ]
        if found is None or None in parts:
            return False
        tensors, about = found
        unpack_row(film, tensors, about)
        film.passed = [
            latent for part in parts if part for latent in part[0]["latents"].split(1, 2)
        ]
        film.skipped += about["skipped"]
        self.passed, self.latents_saved = about["passed"], len(film.passed)
        return True

    def save_row(self, film: Film) -> None:
        """Save the window at work where it is time to."""
        now = time.monotonic()
        # Finished windows are saved anyhow: those at work have what is left of the share.
        room = SHARE * (now - self.opened_at) - self.spent
        affordable = not self.took or not self.store.every or room >= self.took
        if affordable and now - self.saved_at >= self.store.every:
            self.save_row_now(film)

    def save_row_now(self, film: Film) -> None:
        """Save the window at work, in place of what was saved of it before."""
        if not self.store.rows():
            return
        begin, key = time.monotonic(), self.keys[film.window]
        tensors, numbers = pack_row(film)
        if not torch.isfinite(tensors["latents"]).all():
            return  # the loop says so, at its next model call
        saved = self.latents_saved
        if len(film.passed) > saved:
            new = {"latents": torch.cat(film.passed[saved:], dim=2)}
            files.write(self.store.path("passed", key, saved), new, {})
            self.passed.append(saved)
            self.latents_saved = len(film.passed)
        numbers |= {"skipped": film.skipped - self.skipped, "passed": self.passed}
        files.write(self.store.path("row", key), tensors, numbers)
        self.saved_at = time.monotonic()
        self.took = self.saved_at - begin
        self.spent += self.took

    def save_window(self, film: Film) -> None:
        """Save the window that the film has just finished; its rows are needed no more."""
        begin, key = time.monotonic(), self.keys[film.window - 1]
        tensors, about = pack_window(film)
        about |= {"skipped": film.skipped - self.skipped, "parts": dict(key.parts)}
        number = self.disk.new_number(key.index, key.key)
        about |= {"take": number, "seed": key.seed, "leads_into": key.leads_into}
        files.write(self.store.path("window", key), tensors, about)
        self.windows.settle()
        self._remove_rows(key)
        self.made += 1
        self.spent += time.monotonic() - begin

    def read_latents(self, index: int) -> Tensor:
        """The latents (1, C, F, h, w) of a window that was kept or made."""
        return files.read(self.store.path("window", self.keys[index]))[0]["latents"]

    def _remove_rows(self, key: WindowKey) -> None:
        for path in self.store.list_rows(key.name):
            files.remove(path)

    def explain(self, index: int) -> list[str]:
        """What has changed since the newest window that was saved with this number."""
        pattern = f"window_{index:05d}_*{files.ENDING}"
        for path in sorted(self.store.folder.glob(pattern), key=_written_at, reverse=True):
            with contextlib.suppress(files.Damaged, OSError):
                return self.keys[index].differences(files.read_about(path)["parts"])
        return []

    def _read(
        self, kind: str, key: WindowKey, number: int | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A file's content; None where it is not there, is not wanted or is damaged."""
        if key.taken:
            return self._require(key)
        path = self.store.path(kind, key, number)
        if self.afresh or not path.exists():
            return None
        try:
            return files.read(path)
        except files.Damaged as error:
            self.damaged.append(str(error))
            return None

    def _require(self, key: WindowKey) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A window that cannot be made again; raises ValueError where it is damaged or gone."""
        try:
            return files.read(self.store.path("window", key))
        except (files.Damaged, FileNotFoundError) as error:
            raise refuse(
                f"takes uses a take of window {key.index + 1} that cannot be read ({error}); "
                f"choose another",
                "takes",
            ) from error


def _goes_on(film: Film) -> bool:
    """Whether another window continues the current one."""
    plan, following = film.plan, film.window + 1
    return following < plan.num_windows and plan.continues(plan.window_at(following))


def _hand_on(
    film: Film, tensors: Mapping[str, Tensor], about: Mapping[str, Any], history: History | None
) -> tuple[Tensor | None, Tail]:
    """What a saved window gives to the next in place of the current one, and the tail behind it.

    Made again where the window was saved for a film whose next window needed less.
    """
    if not _goes_on(film):
        return None, Tail()
    if "carried" not in tensors or not (about["tail"] or brings_enough(film.plan, film.window + 1)):
        return carry_over(film, tensors["latents"], history)
    return tensors["carried"], unpack_tail(tensors)


def make_film(
    film: Film,
    sample_window: Callable[[Film], None],
    history: History | None,
    session: Session | None = None,
    on_window: Callable[[], object] = lambda: None,
    aside: History | None = None,
) -> None:
    """Make all windows of a film that are left, those that a store has from there.

    sample_window: denoises the film's current window, which may have begun. With a session the
    film's finished windows are read from the disk when they are needed. on_window: is called when
    a window is among them. aside: as `history`, for windows that are not the film's; where it is
    not given, `history`.
    """
    if session:
        film.finished = session.windows
    while not film.done:
        if session and session.recall(film, history):
            on_window()
            continue
        if session and session.keys[film.window].leads_into:
            session.lead_into(film, sample_window, aside or history)
        else:
            if session:
                session.resume(film)
            sample_window(film)
            finish_window(film, history)
        if session:
            session.save_window(film)
        on_window()


def _written_at(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0
