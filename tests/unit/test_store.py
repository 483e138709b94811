"""Films on disk: resumed to the bit, never mixed, whole after any crash."""

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from golden_data import models
from store_films import PLAN, Run, Stop, answer, latents

from skyreels_model.plan.shots import Shot
from skyreels_model.rollout.film import Film
from skyreels_model.rollout.history import latent_history
from skyreels_model.rollout.loop import denoise, finish_window
from skyreels_model.rollout.noise import SeededNoise
from skyreels_model.store import files
from skyreels_model.store import store as store_module
from skyreels_model.store.store import FilmStore

ROOT = Path(__file__).resolve().parents[2]
SHOTS = (Shot(25, False, 0), Shot(25, False, 0), Shot(25, True, 0))


@pytest.fixture(scope="module")
def vae():
    return models.small_vae()


KINDS = {
    "asynchronous": {},
    "synchronous": {"ar_step": 0},
    "pixels, anchor": {"history": "pixels", "anchor": 1.0},
    "long overlap": {"history": "picture+latents", "overlap": 17, "anchor": 0.5},
    "one sequence": {"sliding": True, "num_frames": 65},
    "shots": {"num_frames": 75, "shots": SHOTS},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "solver"),
    [(kind, solver) for kind in KINDS for solver in ("unipc", "lcm")]
    + [("asynchronous", "dpmpp_2m"), ("asynchronous", "euler")],
)
def test_a_film_that_was_stopped_goes_on_to_the_same_bits(tmp_path, vae, kind, solver):
    plan = dataclasses.replace(PLAN, **KINDS[kind])
    whole = Run(plan, solver=solver, vae=vae)
    expected = latents(whole.make()[0])
    store = FilmStore(tmp_path / "film", every=0)
    for limit in random.Random(kind).choices(range(1, whole.calls // 2), k=3):
        with pytest.raises(Stop):
            Run(plan, solver=solver, vae=vae, limit=limit).make(store)
    last = Run(plan, solver=solver, vae=vae)
    film, session = last.make(store)
    assert torch.equal(latents(film), expected)
    assert 0 < last.calls < whole.calls
    again = Run(plan, solver=solver, vae=vae)
    film, session = again.make(store)
    assert torch.equal(latents(film), expected)
    assert again.calls == 0 and session.kept == plan.num_windows and not session.damaged


def test_a_clock_that_was_set_back_changes_nothing(tmp_path):
    """What was saved before then bears times that have yet to come."""
    whole = Run()
    expected, store = latents(whole.make()[0]), FilmStore(tmp_path / "film", every=0)
    with pytest.raises(Stop):
        Run(limit=whole.calls // 2).make(store)
    later = time.time() + 365 * 24 * 3600
    for file in sorted((tmp_path / "film").rglob("*")):
        os.utime(file, (later, later))
    last = Run()
    film, session = last.make(store)
    assert torch.equal(latents(film), expected)
    assert 0 < last.calls < whole.calls and not session.damaged


def test_a_cache_of_model_calls_goes_on_where_it_was(tmp_path, vae):
    given = {"plan": dataclasses.replace(PLAN, ar_step=0, steps=20), "threshold": 0.3}
    whole = Run(**given)
    film, _ = whole.make()
    expected, skipped = latents(film), film.skipped
    assert skipped > 5
    store = FilmStore(tmp_path, every=0)
    for limit in (3, 9):
        with pytest.raises(Stop):
            Run(**given, limit=limit).make(store)
    film, _ = Run(**given).make(store)
    assert torch.equal(latents(film), expected) and film.skipped == skipped


def test_a_longer_film_keeps_the_windows_of_the_shorter(tmp_path, vae):
    for history in ("latents", "pixels"):
        store = FilmStore(tmp_path / history)
        short = dataclasses.replace(PLAN, num_frames=41, history=history)
        Run(short, vae=vae).make(store)
        long = dataclasses.replace(short, num_frames=73)
        film, session = Run(long, vae=vae).make(store)
        assert (session.kept, session.made) == (2, 2)
        assert torch.equal(latents(film), latents(Run(long, vae=vae).make()[0]))


def test_a_film_that_is_changed_and_changed_back_is_found_again(tmp_path):
    store = FilmStore(tmp_path)
    Run(prompt="a").make(store)
    other, session = Run(prompt="another").make(store)
    assert session.kept == 0
    with store.open(Run(prompt="third").keys()) as session:
        assert session.explain(0) == ["prompt"]
    film, session = Run(prompt="a").make(store)
    assert session.made == 0 and not torch.equal(latents(film), latents(other))


def test_afresh_takes_nothing_and_loses_nothing(tmp_path):
    store = FilmStore(tmp_path)
    expected = latents(Run().make(store)[0])
    run = Run()
    film, session = run.make(store, afresh=True)
    assert run.calls and session.kept == 0 and torch.equal(latents(film), expected)


@pytest.mark.parametrize("kind", ["cut off", "a bit", "empty", "another file", "words"])
def test_a_damaged_file_is_made_anew_and_said(tmp_path, kind):
    store = FilmStore(tmp_path)
    expected = latents(Run().make(store)[0])
    path = sorted(tmp_path.glob("window_*"))[1]
    content = bytearray(path.read_bytes())
    if kind == "cut off":
        content = content[:-7]
    elif kind == "a bit":
        content[-3] ^= 4
    elif kind == "empty":
        content = b""
    elif kind == "another file":
        content = b"<html>no film</html>" * 40
    else:
        content = content.replace(b'\\"skipped\\": 0', b'\\"skipped\\": 9')
    assert bytes(content) != path.read_bytes()
    path.write_bytes(content)
    film, session = Run().make(store)
    assert torch.equal(latents(film), expected)
    assert session.made == 1 and len(session.damaged) == 1 and path.name in session.damaged[0]


def test_one_writer_at_a_time(tmp_path):
    store = FilmStore(tmp_path / "night train")
    with store.open(Run().keys()):
        with pytest.raises(ValueError, match="night train is being made by another run"):
            Run().make(FilmStore(tmp_path / "night train"))
    Run().make(store)


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    files.write(path, {"x": torch.ones(3)}, {"n": 1})

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write(path, {"x": torch.zeros(3)}, {"n": 2})
    assert sorted(tmp_path.iterdir()) == [path]
    tensors, about = files.read(path)
    assert about["n"] == 1 and torch.equal(tensors["x"], torch.ones(3))


def test_rows_that_are_not_finite_are_not_saved(tmp_path):
    store = FilmStore(tmp_path, every=0)
    with store.open(Run().keys()) as session:
        film = Film(PLAN)
        rows = denoise(film, answer, SeededNoise(0))
        next(rows)
        session.save_row(film)
        (saved,) = tmp_path.glob("row_*")
        before = saved.read_bytes()
        next(rows)
        film.latents[0, 0, 0, 0, 0] = torch.nan
        session.save_row(film)
        assert saved.read_bytes() == before


@pytest.fixture
def clock(monkeypatch):
    """The seconds of a clock of its own, on which saving a row takes 3 s and a window 1 s."""
    now = [0.0]

    def write(path, tensors, about):
        now[0] += 3 if "row" in about else 1

    monkeypatch.setattr(store_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(files, "write", write)
    return now


def save_rows(session, clock, film, windows, call=2):
    """Make windows by calls of so many s; when rows were saved, and the share that saving took."""
    saved, shares = [], []
    for _ in range(windows):
        for _ in denoise(film, answer, SeededNoise(0)):
            clock[0] += call
            before = clock[0]
            session.save_row(film)
            if clock[0] > before:
                saved.append(before)
                shares.append(session.spent / clock[0])
        finish_window(film, latent_history(1))
        session.save_window(film)
    return saved, shares


def test_saving_takes_a_hundredth_of_the_time(tmp_path, clock):
    with FilmStore(tmp_path, every=10).open(Run().keys()) as session:
        film = Film(dataclasses.replace(PLAN, num_frames=25, steps=100))
        saved, shares = save_rows(session, clock, film, 1, call=8)
    assert saved == [16, 603, 902]  # at 16 it is not known yet what it takes
    assert max(shares[1:]) < 0.01


def test_finished_windows_are_part_of_that_hundredth(tmp_path, clock):
    plan = dataclasses.replace(PLAN, steps=40)
    with FilmStore(tmp_path, every=10).open(Run(plan).keys()) as session:
        saved, shares = save_rows(session, clock, Film(plan), plan.num_windows, call=20)
    assert len(saved) > 3
    assert max(shares[1:]) < 0.01
    assert session.spent == 3 * len(saved) + plan.num_windows


def test_with_no_seconds_between_them_rows_are_saved_whatever_it_takes(tmp_path, clock):
    with FilmStore(tmp_path, every=0).open(Run().keys()) as session:
        saved, _ = save_rows(session, clock, Film(PLAN), 1)
    assert len(saved) == PLAN.steps + PLAN.ar_step * (PLAN.window_at(0).length - 1)


def test_rows_go_when_their_window_is_done(tmp_path):
    plan = dataclasses.replace(PLAN, **KINDS["one sequence"])
    store = FilmStore(tmp_path, every=0)
    with pytest.raises(Stop):
        Run(plan, limit=24).make(store)
    assert any(tmp_path.glob("row_*")) and any(tmp_path.glob("passed_*"))
    Run(plan).make(store)
    left = {path.name.split("_")[0] for path in tmp_path.glob("*.safetensors")}
    assert left == {"window"}


def test_rows_that_a_killed_run_left_go_with_their_window(tmp_path, monkeypatch):
    plan = dataclasses.replace(PLAN, **KINDS["one sequence"])
    store = FilmStore(tmp_path, every=0)
    with monkeypatch.context() as patched, pytest.raises(Stop):

        def stop(path):
            raise Stop

        patched.setattr(files, "remove", stop)
        Run(plan).make(store)
    assert any(tmp_path.glob("window_*")) and any(tmp_path.glob("passed_*"))
    last = Run(plan)
    _, session = last.make(store)
    assert last.calls == 0 and session.kept == 1
    assert {path.name.split("_")[0] for path in tmp_path.glob("*.safetensors")} == {"window"}


def test_rows_saved_at_other_places_go_too(tmp_path):
    """A damaged part of them has the window begin again, and saves its parts elsewhere."""
    plan = dataclasses.replace(PLAN, **KINDS["one sequence"])
    with pytest.raises(Stop):
        Run(plan, limit=30).make(FilmStore(tmp_path, every=0))
    parts = sorted(tmp_path.glob("passed_*"))
    assert len(parts) > 1
    parts[0].write_bytes(b"")
    _, session = Run(plan).make(FilmStore(tmp_path))
    assert session.damaged and session.made == 1
    assert {path.name.split("_")[0] for path in tmp_path.glob("*.safetensors")} == {"window"}


def test_rows_wait_while_a_model_remembers_what_they_do_not_have(tmp_path):
    store = FilmStore(tmp_path, every=0, rows=lambda: False)
    with pytest.raises(Stop):
        Run(limit=5).make(store)
    assert not any(tmp_path.glob("row_*"))


@pytest.mark.parametrize("kind", ["file", "folder's file", "link to nothing"])
def test_a_folder_that_cannot_be_one_is_named(tmp_path, kind):
    folder = tmp_path / "films" / "night train"
    if kind == "file":
        folder.parent.write_bytes(b"")
    elif kind == "folder's file":
        folder.parent.mkdir()
        folder.write_bytes(b"")
    else:
        folder.parent.mkdir()
        os.symlink(tmp_path / "nowhere" / "else", folder)
    with pytest.raises(OSError, match="cannot be saved in .*night train.*write to"):
        Run().make(FilmStore(folder))


def test_a_folder_that_goes_away_is_named(tmp_path):
    folder = tmp_path / "night train"
    store = FilmStore(folder)
    run = Run()
    with store.open(run.keys()) as session:
        film = Film(PLAN)
        shutil.rmtree(folder)
        for _ in denoise(film, answer, SeededNoise(0)):
            pass
        with pytest.raises(OSError, match="could not be saved: No such file.*night train"):
            session.save_row_now(film)


CHILD = """
    import os, sys
    sys.path[:0] = HERE
    import conftest, store_films
    from pathlib import Path
    from skyreels_model.store.store import FilmStore

    def told(call):
        def run(*args):
            print(flush=True)
            return call(*args)
        return run

    os.fsync, os.replace = told(os.fsync), told(os.replace)
    store_films.Run().make(FilmStore(Path(sys.argv[1]), every=0))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_that_is_killed_loses_no_more_than_a_row(tmp_path):
    """After so many writings and renamings, drawn by a seed."""
    expected = latents(Run().make()[0])
    folder, draw = tmp_path / "film", random.Random(0)
    here = [str(ROOT / "tests")]
    script = tmp_path / "child.py"
    script.write_text(textwrap.dedent(CHILD).replace("HERE", repr(here)))
    for _ in range(4):
        command = [sys.executable, str(script), str(folder)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [child.stdout.readline() for _ in range(draw.randrange(1, 12))]
        child.kill()
        child.communicate()
        assert lines[-1] == "\n"  # it was at work
    film, session = Run().make(FilmStore(folder))
    assert torch.equal(latents(film), expected) and not session.damaged
    assert not any(folder.glob("*.part"))
