"""Hostile input as properties: whatever is given, there is a result or a plain error, nothing else.

`PROPERTIES` are functions of one drawn value, by name, with the strategy that draws it. The tests
try a fixed sample of each, `benchmarks/hostile.py` thousands.
"""

import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import socket
import tempfile
import zipfile
from fractions import Fraction

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from store_films import Run

from skyreels_model.files import checkpoint
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.guidance import film_guidance
from skyreels_model.plan.retakes import parse_retakes
from skyreels_model.plan.storyboard import parse_storyboard
from skyreels_model.store import files
from skyreels_model.store.manifest import MANIFEST, read_manifest
from skyreels_model.store.store import FilmStore
from skyreels_model.video.codecs import VideoSettings
from skyreels_model.video.reader import FileFilm
from skyreels_model.video.writer import FilmWriter

SMALL = FilmPlan(
    num_frames=25, width=16, height=16, window=17, overlap=9, steps=1, history="latents"
)


@contextlib.contextmanager
def guarded():
    """A folder of its own; fails where a socket is opened, or a file written beside the folder."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    before, plain = pathlib.Path.cwd(), socket.socket
    with tempfile.TemporaryDirectory() as outer:
        folder = pathlib.Path(outer) / "inner" / "film"
        folder.mkdir(parents=True)
        os.chdir(folder.parent)
        socket.socket = refuse
        try:
            yield folder
            assert sorted(folder.parent.iterdir()) == [folder]
            assert sorted(pathlib.Path(outer).iterdir()) == [folder.parent]
        finally:
            socket.socket = plain
            os.chdir(before)


# Letters of which marks are made come more often.
WORDS = st.one_of(
    st.sampled_from("0s: | 3.5s |s:|:|/|\n|cut|ease |seed |1|12|-|,|;|.|e9|nan|\0".split("|")),
    st.sampled_from(("take ", "shot ", "window ", " only")),
    st.text(max_size=5),
)
TEXTS = st.lists(WORDS, max_size=30).map("".join)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.sampled_from(["..", "/etc/passwd", "C:\\x", "", "pixels", "a" * 5000])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
# Bytes that are put in the place of some, or cut out, at shares of a file's length.
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True), st.binary(max_size=8), st.sampled_from((0, 1, 8, 10**9))
    ),
    min_size=1,
    max_size=3,
)


def edit(content, edits):
    for share, new, gone in edits:
        place = int(share * len(content))
        content = content[:place] + new + content[place + gone :]
    return content


@functools.cache
def window_file():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "window"
        files.write(path, {"latents": torch.arange(64.0).reshape(1, 16, 1, 2, 2)}, {"skipped": 0})
        return path.read_bytes()


@functools.cache
def film_files():
    """A whole film's files, by name."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        Run(SMALL).make(FilmStore(folder))
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@functools.cache
def videos():
    found = []
    with tempfile.TemporaryDirectory() as name:
        for codec in ("h264", "ffv1", "vp9"):
            path = pathlib.Path(name) / codec
            with FilmWriter(path, VideoSettings(codec), Fraction(24)) as writer:
                writer.write(torch.rand(4, 32, 32, 3))
            found.append(path.read_bytes())
    return found


class Payload:
    """What a pickle would run where it is loaded carelessly."""

    def __reduce__(self):
        return (open, ("../payload", "w"))


@functools.cache
def checkpoints():
    found = [save({"a.weight": torch.ones(2, 3)}, {"about": "x"})]
    for content in ({"a": torch.ones(2)}, {"a": Payload()}):
        out = io.BytesIO()
        torch.save(content, out)
        found.append(out.getvalue())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("x/data.pkl", pickle.dumps(Payload()))
    return [*found, archive.getvalue(), pickle.dumps(Payload())]


def read_text(text):
    for parse in (
        lambda: parse_storyboard(text, 10),
        lambda: parse_storyboard("0s: a\n" + text, 10.0),
        lambda: parse_retakes(text),
        lambda: film_guidance(6.0, text),
    ):
        with contextlib.suppress(ValueError):
            parse()


def read_window(edits):
    """What is read of an altered file is what was written, or the file is damaged."""
    with guarded() as folder:
        path = folder / "window.safetensors"
        path.write_bytes(edit(window_file(), edits))
        try:
            tensors, about = files.read(path)
        except files.Damaged:
            return
        assert torch.equal(tensors["latents"].flatten(), torch.arange(64.0))
        assert about == {"format": 1, "skipped": 0}


def read_film(drawn):
    """A manifest with other values, or other bytes."""
    name, value, edits = drawn
    about = json.loads(film_files()[MANIFEST])
    if name in about:
        about[name] = value
    else:
        about["plan"][name] = value
    content = json.dumps(about).encode()
    with guarded() as folder:
        for file, original in film_files().items():
            (folder / file).write_bytes(original)
        (folder / MANIFEST).write_bytes(edit(content, edits) if edits else content)
        try:
            film = read_manifest(folder)
            assert all((folder / one).parent == folder for one in film.windows)
            for latents in film.finished():
                assert latents.ndim == 5
        except files.Damaged:
            pass


def resume_film(drawn):
    """Files of a film altered: what is damaged is made again, to the same bits."""
    place, edits = drawn
    with guarded() as folder:
        for number, (name, content) in enumerate(film_files().items()):
            altered = edit(content, edits) if number == place else content
            (folder / name).write_bytes(altered)
        film, session = Run(SMALL).make(FilmStore(folder))
        assert session.kept + session.made == SMALL.num_windows
        assert torch.equal(torch.cat(list(film.finished), dim=2), whole_film())


@functools.cache
def whole_film():
    return torch.cat(list(Run(SMALL).make()[0].finished), dim=2)


def read_video(drawn):
    which, edits = drawn
    source = io.BytesIO(edit(videos()[which], edits))
    with guarded(), contextlib.suppress(ValueError, OSError):
        film = FileFilm("video_file", source, 24, 32, 32)
        film.cut(0, min(len(film), 4))
        film.sound()


def read_checkpoint(drawn):
    which, edits = drawn
    with guarded() as folder:
        path = folder / "model.bin"
        path.write_bytes(edit(checkpoints()[which], edits) if edits else checkpoints()[which])
        with contextlib.suppress(ValueError, OSError):
            checkpoint.read(path)


def make_plan(numbers):
    with contextlib.suppress(ValueError):
        plan = FilmPlan(**numbers)
        assert plan.window_at(0).length >= 1 and plan.num_windows >= 1
        assert plan.window_at(plan.num_windows - 1).start >= 0


NUMBERS = st.one_of(
    st.integers(-5, 200), st.integers(-(10**9), 10**9), st.floats(), st.none(), st.booleans()
)
PLANS = st.fixed_dictionaries(
    {},
    optional={
        name: st.integers(0, 12).map(lambda n: 4 * n + 1)
        | st.integers(1, 64).map(lambda n: 16 * n)
        | NUMBERS
        for name in (
            "num_frames width height window overlap steps shift ar_step block_size prefix_noise "
            "fps start end sliding anchor denoise following kept_end"
        ).split()
    }
    | {"history": st.sampled_from(["pixels", "latents", "other", 3])},
)
FIELDS = st.sampled_from(
    "format windows extends plan num_frames width window overlap shots pictures sigmas start "
    "history sliding following kept_end other".split()
)
PROPERTIES = {
    "texts": (read_text, TEXTS),
    "window files": (read_window, EDITS),
    "manifests": (read_film, st.tuples(FIELDS, JSON, st.just([]) | EDITS)),
    "films": (resume_film, st.tuples(st.integers(0, 4), EDITS)),
    "videos": (read_video, st.tuples(st.integers(0, 2), EDITS)),
    "checkpoints": (read_checkpoint, st.tuples(st.integers(0, 4), st.just([]) | EDITS)),
    "plans": (make_plan, PLANS),
}
