"""Films on a disk that is full or may not be written, for real: nothing is lost, all is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from store_films import PLAN, Run, latents

from skyreels_model.store import files
from skyreels_model.store.store import FilmStore

WINDOWS = PLAN.num_windows
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def disk(tmp_path):
    """`disk(kilobytes)`: a small disk, made or resized; its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def resize(kilobytes):
        nonlocal mounted
        again = ["-o", "remount,"] if mounted else ["-t", "tmpfs", "-o", ""]
        again[-1] += f"size={kilobytes}k"
        command = ["mount", *again, *(["tmpfs"] if not mounted else []), str(folder)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk cannot be made here: that needs Linux and the right to mount")
        mounted = True
        return folder

    yield resize
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kilobytes", [8, 16, 20, 24, 28])
def test_a_film_on_a_full_disk_goes_on_when_there_is_room(disk, kilobytes):
    """The smallest holds no file."""
    store = FilmStore(disk(kilobytes) / "film", every=0)
    with pytest.raises(OSError, match="could not be saved: No space left.*what was saved is whole"):
        Run().make(store)
    left = sorted(store.folder.glob("*"))
    assert not [path for path in left if path.suffix == files.UNFINISHED]
    for path in left:
        if path.suffix == files.ENDING:
            files.read(path)  # raises where it is not as it was written
    disk(4096)
    film, session = Run().make(store)
    assert torch.equal(latents(film), latents(Run().make()[0]))
    assert session.kept + session.made == WINDOWS and not session.damaged


@pytest.mark.skipif(sys.platform == "win32", reason="rights are others there")
def test_a_disk_that_may_only_be_read_is_named(disk):
    folder = disk(4096)
    Run().make(FilmStore(folder / "film"))
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    with pytest.raises(OSError, match="cannot be saved in .*film.*Read-only file system"):
        Run().make(FilmStore(folder / "film"))
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    assert Run().make(FilmStore(folder / "film"))[1].kept == WINDOWS


def test_a_clock_that_was_set_back_changes_nothing(tmp_path):
    store = FilmStore(tmp_path)
    Run(prompt="b").make(store)
    for path in sorted(tmp_path.glob(f"*{files.ENDING}")):
        os.utime(path, (1, 1))
    film, session = Run().make(store)
    assert session.made == WINDOWS and session.changed == ["prompt"]
    for number, path in enumerate(sorted(tmp_path.glob(f"*{files.ENDING}"))):
        os.utime(path, (4e9 + number, 4e9 + number))  # in the year 2096
    again, session = Run().make(store)
    assert session.kept == WINDOWS and torch.equal(latents(again), latents(film))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that forks")
def test_a_film_that_is_killed_and_made_again_is_the_same():
    """A little of what `kills_forked.py` does for long."""
    script = [str(ROOT / "benchmarks" / "kills_forked.py"), "--films", "synchronous"]
    options = ["--kills", "3", "--windows", "1"]
    done = subprocess.run([sys.executable, *script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "| synchronous, 0 | 3 |" in done.stdout and "3 kills, 0 of 1 films" in done.stdout
