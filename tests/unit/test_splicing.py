"""A film beside a clip in a file: the clip's packets are copied where they fit the new ones."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from skyreels_model.video.codecs import CODECS, VideoSettings
from skyreels_model.video.reader import FileFilm
from skyreels_model.video.splicing import why_coded, write_spliced
from skyreels_model.video.unfinished import Claim, sweep
from skyreels_model.video.writer import FilmWriter

RATE = Fraction(24)
SIZE = (64, 64)


def greys(first, count):
    """Frames (n, 64, 64, 3), each of a grey of its own."""
    levels = (first + torch.arange(count)) * 8 / 255
    return levels.reshape(-1, 1, 1, 1).expand(-1, 64, 64, 3)


def write(path, frames, settings, rate=RATE):
    with FilmWriter(path, settings, rate) as writer:
        writer.write(frames)
    return path


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def clip_of(path, name="video_file"):
    return FileFilm(name, str(path), 24, *SIZE, from_end=name == "video_file")


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "png"])
def test_a_spliced_film_has_the_clips_packets_and_all_frames(codec, tmp_path):
    settings = VideoSettings(codec, 90)
    before = write(tmp_path / "before", greys(0, 10), settings)
    after = write(tmp_path / "after", greys(20, 8), settings)
    why = why_coded(clip_of(before), settings, RATE)
    if why:
        assert codec in ("vp9", "av1") and why == "it is coded in another way"
        return
    path = tmp_path / "film"
    sources = str(before), iter(greys(10, 10).split(3)), str(after)
    write_spliced(path, settings, RATE, {"about": "a film"}, None, *sources)
    whole = packets(path)
    assert whole[:10] == packets(before) and whole[-8:] == packets(after) and len(whole) == 28
    with av.open(str(path)) as container:
        assert container.metadata["about"] == "a film"
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
    assert [frame.pts * stream.time_base * RATE for frame in frames] == list(range(28))
    shown = [int(frame.to_ndarray(format="rgb24")[32, 32, 1]) for frame in frames]
    assert all(abs(level - 8 * number) <= 4 for number, level in enumerate(shown))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["after", "before", "film"]


def test_why_a_clip_is_coded_again(tmp_path):
    settings = VideoSettings("h264", 80)
    same = write(tmp_path / "same", greys(0, 6), settings)
    other = write(tmp_path / "other", greys(0, 6), VideoSettings("ffv1"))
    slow = write(tmp_path / "slow", greys(0, 6), settings, Fraction(12))
    near = write(tmp_path / "near", greys(0, 6), settings, Fraction(24000, 1001))
    said = {
        path.name: why_coded(clip_of(path), settings, RATE) for path in (same, other, slow, near)
    }
    assert said == {
        "same": "",
        "other": "it is coded in another way",
        "slow": "some of its frames are left out or shown twice",
        "near": "its frames are not exactly 24 a second",
    }
    part = FileFilm("video_file", str(same), 24, *SIZE, begin=2 / 24)
    assert why_coded(part, settings, RATE)
    small = FileFilm("video_file", str(same), 24, 32, 32)
    assert why_coded(small, settings, RATE) == "it is coded in another way"
    assert why_coded(clip_of(same), VideoSettings("png"), RATE) == "it becomes pictures"


def test_a_film_that_fails_leaves_nothing_beside_its_clip(tmp_path):
    settings = VideoSettings("h264", 80)
    before = write(tmp_path / "before", greys(0, 6), settings)

    def pieces():
        yield greys(6, 3)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_spliced(tmp_path / "film", settings, RATE, {}, None, str(before), pieces(), None)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["before"]


KILLED = """
import os, sys
from fractions import Fraction
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from skyreels_model.video.codecs import VideoSettings
from skyreels_model.video.pictures import open_writer
writer = open_writer(Path({path!r}), VideoSettings({codec!r}), Fraction(24))
writer.write(torch.zeros(3, 64, 64, 3))
print("written", flush=True)
if {stays}:
    sys.stdin.read()
os._exit(9)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="files in use are not told from others there")
@pytest.mark.parametrize(("codec", "name"), [("h264", "film_00001_.mp4"), ("png", "film_00001_")])
def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path, codec, name):
    kept = [tmp_path / "mine.part", tmp_path / "film_00002_.mp4"]
    for path in kept:
        path.write_bytes(b"mine")

    def run(stays):
        root = str(Path(__file__).resolve().parents[2])
        code = KILLED.format(root=root, path=str(tmp_path / name), codec=codec, stays=stays)
        command = [sys.executable, "-c", code]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    with run(stays=True) as alive:
        assert alive.stdout.readline() == b"written\n"
        assert sweep(tmp_path) == []
        (written,) = tmp_path.glob(f"{name}.*.part")
        alive.communicate()
    assert alive.returncode == 9 and written.exists()
    assert sweep(tmp_path) == [written] and not written.exists()
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_claim_is_seen_until_it_is_released(tmp_path):
    path = tmp_path / "film_00001_.mp4.made.part"
    path.write_bytes(b"x")
    claim = Claim(path)
    assert sweep(tmp_path) == [] and path.exists()
    claim.release()
    claim.release()
    if sys.platform != "win32":
        assert sweep(tmp_path) == [path] and not path.exists()
