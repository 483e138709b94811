"""A film's latents on the disk: read when needed, the same as in memory, and not kept."""

import dataclasses
import gc
import os
import sys
import tempfile
import weakref

import pytest
import torch

from skyreels_model.files.mapped import READ, page_out
from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, SeededNoise
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.frames import decode_latents
from skyreels_model.rollout.history import new_history
from skyreels_model.rollout.loop import denoise
from skyreels_model.rollout.parts import Stretch, decode_stretches, describe_film, film_stretches
from skyreels_model.store import files
from skyreels_model.store.keys import window_keys
from skyreels_model.store.manifest import MANIFEST, read_manifest, write_manifest
from skyreels_model.store.store import FilmStore, make_film
from skyreels_model.store.windows import DiskSink, StoredWindows, decode_from_disk
from skyreels_model.vae.network import VideoVAE

PLAN = FilmPlan(num_frames=42, width=16, height=16, window=17, overlap=9, steps=2, prefix_noise=0)
SHOTS = (Shot(20), Shot(22, cut=True))
FOLLOWING = Conditions(following=torch.ones(1, 16, 2, 2, 2))
PLANS = {
    "pixels": (PLAN, Conditions()),
    "cut, latents": (dataclasses.replace(PLAN, shots=SHOTS, history="latents"), Conditions()),
    "backwards": (PLAN, FOLLOWING),
}


@pytest.fixture(scope="module", autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def vae():
    return VideoVAE(dim=2, num_res_blocks=0).eval()


def make(folder, plan, conditions, vae):
    """(film, the folder's film) of a cheap model; without a folder only the first."""
    plan = plan.fit(conditions.counts)
    film = Film(plan, conditions=conditions)
    history = new_history(plan, vae)

    def sample(film):
        list(denoise(film, lambda x, t: 0.7 * x, SeededNoise(1)))

    if folder is None:
        make_film(film, sample, history)
        return film, None
    keys = window_keys(plan, conditions, film.solver, lambda window: {})
    with FilmStore(folder).open(keys) as session:
        write_manifest(folder, plan, keys)
        make_film(film, sample, history, session)
    return film, read_manifest(folder)


@pytest.fixture(scope="module", params=PLANS)
def films(request, vae, tmp_path_factory):
    """(film in memory, film on disk, what its folder says)"""
    plan, conditions = PLANS[request.param]
    folder = tmp_path_factory.mktemp("film")
    return make(None, plan, conditions, vae)[0], *make(folder, plan, conditions, vae)


def test_a_film_on_disk_is_described_as_one_in_memory(films, tmp_path):
    in_memory, on_disk, _ = films
    plain, parts = describe_film(in_memory, lambda x: x * 2)
    samples, found = describe_film(on_disk, lambda x: x * 2, sink=lambda: DiskSink(tmp_path))
    assert torch.equal(samples, plain) and found.digest == parts.digest
    assert found.spans == parts.spans
    for seam, wanted in zip(found.seams, parts.seams, strict=True):
        assert (seam.start, seam.frames, seam.skip) == (wanted.start, wanted.frames, wanted.skip)
        assert (seam.given is None) == (wanted.given is None)
        assert seam.given is None or torch.equal(seam.given, wanted.given)
    assert not any(tmp_path.iterdir())


def test_what_a_folder_says_is_decoded_to_the_same_frames(films, vae):
    film, _, stored = films
    assert stored.plan == film.plan and stored.count == film.plan.num_windows

    def frames(finished):
        pieces = decode_stretches(
            film_stretches(stored.plan, finished), lambda latents: decode_latents(vae, latents)
        )
        return torch.cat(list(pieces), dim=2)

    assert torch.equal(frames(stored.finished()), frames(film.finished))


def test_a_stretch_of_many_windows_is_joined_on_the_disk_to_the_same_bits(tmp_path):
    """Of a film of one sequence, which is one stretch, three windows at most are in memory."""
    plan = dataclasses.replace(PLAN, num_frames=81, history="latents")
    seen, most = [], []

    def finished():
        for window in plan.windows():
            latents = torch.randn(1, 16, window.length, 2, 2, generator=torch.manual_seed(1))
            seen.append(weakref.ref(latents))
            most.append(sum(one() is not None for one in seen))
            yield latents
            del latents

    (wanted,) = film_stretches(plan, list(finished()))
    seen.clear(), most.clear()
    (found,) = film_stretches(plan, finished(), sink=lambda: DiskSink(tmp_path))
    assert len(most) == plan.num_windows > 5 and max(most) <= 3
    assert torch.equal(found.latents, wanted.latents)
    assert (found.given, found.skip, found.frames) == (wanted.given, wanted.skip, wanted.frames)
    frames = [
        list(decode(one, lambda latents: latents[:, :3].split(1, dim=2)))
        for decode, one in ((decode_stretches, [wanted]), (decode_from_disk, [found]))
    ]
    assert all(map(torch.equal, *frames))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("latents_a_piece", [1, 8])
def test_what_was_read_leaves_memory_whatever_a_piece_is(monkeypatch, latents_a_piece):
    left = []
    monkeypatch.setattr("skyreels_model.store.windows.page_out", left.append)
    latents, frames = torch.zeros(1, 16, 2 * READ, 1, 1), 4 * latents_a_piece

    def decode(given):
        for _ in given.split(latents_a_piece, dim=2):
            yield torch.zeros(1, 3, frames, 1, 1)

    for _ in decode_from_disk([Stretch(latents, 0, 0, 8 * READ)], decode):
        pass
    assert len(left) == 2 and all(one is latents for one in left)


def test_finished_windows_are_not_kept_in_memory(films):
    _, on_disk, _ = films
    windows = on_disk.finished
    assert isinstance(windows, StoredWindows) and windows.newest is None
    read = weakref.ref(windows[0])
    gc.collect()
    assert read() is None


def test_a_film_that_is_not_finished_has_the_windows_before_the_first_that_is_missing(
    vae, tmp_path
):
    _, stored = make(tmp_path, *PLANS["pixels"], vae)
    (tmp_path / stored.windows[1]).unlink()
    assert stored.count == len(stored.finished()) == 1


@pytest.mark.parametrize("text", [b"", b"{}", b'{"format": 1, "plan": 3}', b"\xff"])
def test_a_damaged_folder_is_told(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text)
    with pytest.raises(files.Damaged, match=MANIFEST):
        read_manifest(tmp_path)


def test_windows_by_number():
    windows = StoredWindows(lambda index: torch.full((1,), float(index)))
    windows.append(torch.full((1,), 7.0))
    assert windows[-1] == windows[0] == 7
    windows.settle()
    assert windows[0] == 0 and [float(x) for x in windows] == [0]
    with pytest.raises(IndexError):
        windows[1]


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own count of what is resident")
def test_latents_on_disk_take_no_memory_until_they_are_read(tmp_path):
    def resident():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024

    sink, size = DiskSink(tmp_path), 64
    for _ in range(size):
        sink.add(torch.ones(1, 16, 4, 64, 64))  # 1 MB
    before = resident()
    samples = sink.join()
    assert samples.shape == (1, 16, 4 * size, 64, 64) and resident() - before < 4e6
    assert float(samples.sum()) == samples.numel() and resident() - before > 5e7
    page_out(samples)
    assert resident() - before < 8e6
    samples[:, :, 0] = 2  # is no one else's
    page_out(samples)
    assert float(samples[:, :, :2].sum()) == 3 * 16 * 64 * 64
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_disk_without_room_for_the_joined_film_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: open("/dev/full", "w+b"))
    sink = DiskSink(tmp_path)
    with pytest.raises(OSError, match=f"could not be joined on the disk: No space.*{tmp_path}"):
        sink.add(torch.zeros(1, 16, 2, 8, 8))
        sink.join()
