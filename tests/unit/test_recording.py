"""Windows as videos while a film is made: each once, together the film, joined without coding."""

import dataclasses
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.rollout import Film, SeededNoise
from skyreels_model.rollout.conditions import Conditions
from skyreels_model.rollout.frames import decode_latents
from skyreels_model.rollout.history import history_of
from skyreels_model.rollout.loop import denoise
from skyreels_model.rollout.parts import decode_stretches, film_stretches
from skyreels_model.store.keys import window_keys
from skyreels_model.store.recording import VIDEOS, Recorder, segment_paths
from skyreels_model.store.store import FilmStore, make_film
from skyreels_model.vae.network import VideoVAE, normalize_latents
from skyreels_model.video.codecs import VideoSettings
from skyreels_model.video.segments import PLAYLIST, JoinedWriter, SegmentFolder, alike
from skyreels_model.video.sound import Sound
from skyreels_model.video.writer import FilmWriter

PLAN = FilmPlan(num_frames=42, width=16, height=16, window=17, overlap=9, steps=2, prefix_noise=0)
SHOTS = (Shot(20), Shot(22, cut=True))
BACKWARDS = Conditions(following=torch.ones(1, 16, 2, 2, 2))
RATE = Fraction(24)
# (plan, what is given, how many parts, how often a frame is decoded that the film shows)
FILMS = {
    "pixels": (PLAN, Conditions(), 5, True),
    "picture": (dataclasses.replace(PLAN, history="picture+latents"), Conditions(), 5, True),
    "cut, latents": (
        dataclasses.replace(PLAN, shots=SHOTS, history="latents"), Conditions(), 2, True,
    ),
    "backwards": (PLAN, BACKWARDS, 6, False),
}  # fmt: skip


class Stop(Exception):
    """What ends a run in a test."""


class Run:
    """A film of a cheap model, recorded; `decoded` counts the frames that the VAE has made."""

    def __init__(self, folder, plan, given):
        self.folder, self.plan, self.given = folder, plan.fit(given.counts), given
        self.vae, self.decoded = VideoVAE(dim=2, num_res_blocks=0).eval(), 0
        self.keys = window_keys(self.plan, given, "unipc", lambda window: {})
        self.names = [f"window_{key.name}" for key in self.keys]
        self.segments = SegmentFolder(folder / VIDEOS, VideoSettings("ffv1"), RATE, "vae")

    def to_frames(self, latents):
        for piece in decode_latents(self.vae, latents):
            self.decoded += piece.shape[2]
            yield (piece + 1) / 2

    def make(self, windows=99):
        film = Film(self.plan, conditions=self.given)
        recorder = Recorder(self.segments, film, self.names, False, self.to_frames)

        def encode(frames):
            return normalize_latents(self.vae.encode(frames.clamp(0, 1) * 2 - 1))

        def sample(film):
            if film.window == windows:
                raise Stop
            list(denoise(film, lambda x, t: 0.7 * x, SeededNoise(1)))

        history = history_of(self.plan, recorder.decode, encode)
        with FilmStore(self.folder).open(self.keys) as session:
            make_film(film, sample, history, session, recorder.finish_window)
        return film

    def paths(self, count):
        return segment_paths(self.segments, self.plan, self.names, count, False)

    def frames(self, film):
        """What decoding the finished film gives, as levels (n, H, W, 3)."""
        stretches = film_stretches(film.plan, film.finished)
        frames = torch.cat(list(decode_stretches(stretches, self.to_frames)), dim=2)
        return (frames[0].movedim(0, -1) * 255).round().clamp(0, 255).numpy()


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


def read(path):
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
        return np.stack([f.to_ndarray(format="rgb24") for f in found]), [f.time for f in found]


def join(path, parts, settings, sound=None):
    with JoinedWriter(path, settings, RATE, {"prompt": "{}"}, sound) as writer:
        for part in parts:
            writer.append(part)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILMS)
def test_the_parts_together_are_the_film(tmp_path, kind):
    plan, given, count, once = FILMS[kind]
    run = Run(tmp_path, plan, given)
    film = run.make()
    before, run.decoded = run.decoded, 0
    wanted = run.frames(film)
    # What a next window needs decoded is not decoded again for the video.
    assert before == run.decoded or not once
    paths = run.paths(plan.fit(given.counts).num_windows)
    assert len(paths) == count and alike(paths)
    assert (tmp_path / VIDEOS / PLAYLIST).read_text().split()[1:] == [path.name for path in paths]
    found, times = read(join(tmp_path / "film", paths, VideoSettings("ffv1")))
    assert np.array_equal(found, wanted)
    assert times == pytest.approx([number / 24 for number in range(len(wanted))])


def test_a_film_that_was_ended_can_be_watched_and_goes_on(tmp_path):
    run = Run(tmp_path, PLAN, Conditions())
    with pytest.raises(Stop):
        run.make(windows=2)
    paths = run.paths(2)
    assert sorted(run.segments.folder.glob("*.mp4")) == sorted(paths)
    assert sum(len(read(path)[0]) for path in paths) == 25
    written = [path.stat().st_mtime_ns for path in paths]
    film = run.make()
    assert [path.stat().st_mtime_ns for path in paths] == written
    found, _ = read(join(tmp_path / "film", run.paths(5), VideoSettings("ffv1")))
    assert np.array_equal(found, run.frames(film))


def test_parts_that_are_missing_are_made_of_the_windows_on_disk(tmp_path):
    run = Run(tmp_path, PLAN, Conditions())
    run.make()
    paths = run.paths(5)
    paths[1].unlink()
    assert not alike(paths)
    run.make()
    assert alike(paths)


def test_a_decoding_that_breaks_off_leaves_no_part(tmp_path):
    run = Run(tmp_path, PLAN, Conditions())
    film = Film(PLAN)
    recorder = Recorder(run.segments, film, run.names, False, run.to_frames)
    pieces = recorder.decode(torch.zeros(1, 16, 5, 2, 2))
    next(pieces), next(pieces)
    pieces.close()
    assert not any(run.segments.folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9"])
def test_parts_are_joined_frame_by_frame_with_their_sound(tmp_path, codec):
    """Also where frames lie in another order than they are shown."""
    settings = VideoSettings(codec)
    frames = torch.rand(30, 64, 64, 3) * 0.1 + torch.linspace(0, 0.9, 30).reshape(-1, 1, 1, 1)
    parts = []
    for number, piece in enumerate(frames.split(10)):
        parts.append(tmp_path / f"{number}.mp4")
        with FilmWriter(parts[-1], settings, RATE) as writer:
            writer.write(piece)
    assert alike(parts)
    path = join(tmp_path / "film", parts, settings, Sound(torch.rand(1, 99), 8000))
    found, times = read(path)
    assert times == pytest.approx([number / 24 for number in range(30)])
    assert np.array_equal(found, np.concatenate([read(part)[0] for part in parts]))
    with av.open(str(path)) as container, av.open(str(parts[0])) as part:
        assert container.streams.video[0].codec_context.codec_tag == (
            part.streams.video[0].codec_context.codec_tag
        )
        assert sum(f.samples for f in container.decode(audio=0)) >= 10000


def test_parts_of_other_settings_are_not_joined(tmp_path):
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, codec in zip(parts, ("h264", "ffv1"), strict=True):
        with FilmWriter(part, VideoSettings(codec), RATE) as writer:
            writer.write(torch.zeros(2, 16, 16, 3))
    assert not alike(parts) and alike(parts[:1])
    parts[0].write_bytes(parts[0].read_bytes()[:200])
    assert not alike(parts[:1])
