"""Films to files: every frame at its time, lossless where it is said, whole or not there."""

import os
import sys
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from skyreels_model.video import codecs
from skyreels_model.video.codecs import CODECS, VideoSettings
from skyreels_model.video.pictures import PATTERN, SOUND, open_writer
from skyreels_model.video.priority import REAL_TIME, THREADS
from skyreels_model.video.sound import FileSound, Sound
from skyreels_model.video.writer import FilmWriter, exact_rate, time_few

FRAMES, RATE = 11, Fraction(24)
WORKFLOW = {"prompt": '{"1": "a"}', "workflow": '{"nodes": []}'}
# The largest difference from what was written, of 255: what subsampled colours cost here.
NEAR = {"h264": 6, "hevc": 6, "av1": 8, "vp9": 6, "prores": 3, "ffv1": 0.51, "png": 0.51}


@pytest.fixture(scope="module")
def frames():
    """A soft picture that moves, (n, 64, 80, 3)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 80), indexing="ij")
    return torch.stack(
        [torch.stack([(x + k / 30) % 1, 1 - y, x * y], dim=-1) * 0.9 + 0.05 for k in range(FRAMES)]
    ) * torch.linspace(0.5, 1, FRAMES).reshape(-1, 1, 1, 1)


def write(path, frames, rate=RATE, sound=None, **settings):
    with open_writer(path, VideoSettings(**settings), rate, WORKFLOW, sound) as writer:
        for piece in frames.split(4):
            writer.write(piece)
    return path


def read(path):
    """(frames as levels of 255 (n, H, W, 3), their times, the container's texts)"""
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
        return (
            np.stack([levels(frame) for frame in found]),
            [frame.time for frame in found],
            dict(container.metadata),
        )


def levels(frame):
    """A decoded frame (H, W, 3) as numbers from 0 to 255."""
    if "10" in frame.format.name:
        return frame.to_ndarray(format="rgb48le") / 257
    return frame.to_ndarray(format="rgb24").astype(float)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root's threads can be real-time ones"
)
def test_no_thread_is_left_in_real_time(tmp_path, frames):
    """SVT-AV1 makes its own threads and its caller so, which starves the rest of the machine."""
    seen = set()
    try:
        with open_writer(tmp_path / "film", VideoSettings(codec="av1"), RATE, {}, None) as writer:
            for piece in frames.split(4):
                writer.write(piece)
                seen |= {os.sched_getscheduler(int(thread.name)) for thread in THREADS.iterdir()}
        seen.add(os.sched_getscheduler(0))
        assert seen.isdisjoint(REAL_TIME)
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "png"])
def test_every_frame_is_there_at_its_time(tmp_path, frames, codec):
    path = write(tmp_path / "film", frames, codec=codec, quality=100)
    images, times, texts = read(path)
    assert times == [pytest.approx(k / 24, abs=1e-9) for k in range(FRAMES)]
    assert np.abs(images - frames.numpy() * 255).mean(axis=(1, 2, 3)).max() < NEAR[codec]
    assert {name: texts.get(name) for name in WORKFLOW} == WORKFLOW
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == RATE and stream.frames == FRAMES
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["film"]


@pytest.mark.parametrize("depth", ["8", "10"])
def test_ffv1_keeps_every_level(tmp_path, frames, depth):
    images, _, _ = read(write(tmp_path / "film", frames, codec="ffv1", bit_depth=depth))
    most = 255 if depth == "8" else 1023
    assert np.array_equal((images / 255 * most).round(), (frames * most).round().numpy())


def test_pictures_keep_every_level_and_the_first_the_workflow(tmp_path, frames):
    folder = write(tmp_path / "film", frames, codec="png", sound=Sound(torch.rand(1, 900), 8000))
    opened = [Image.open(folder / (PATTERN % k)) for k in range(FRAMES)]
    found = np.stack([np.array(image) for image in opened])
    assert np.array_equal(found, (frames * 255).round().numpy())
    assert opened[0].text == WORKFLOW and not opened[1].text
    assert sorted(file.name for file in folder.iterdir())[-1] == SOUND
    assert len(sorted(folder.iterdir())) == FRAMES + 1


def test_pictures_of_16_bits(tmp_path, frames):
    folder = write(tmp_path / "film", frames[:1], codec="png", bit_depth="10")
    with av.open(str(folder / (PATTERN % 0))) as container:
        (image,) = container.decode(video=0)
        assert image.format.name == "rgb48be"
        found = image.to_ndarray(format="rgb48le")
    assert np.array_equal(found, (frames[0] * 65535).round().numpy())


@pytest.mark.parametrize("codec", ["h264", "ffv1"])
def test_colours_are_those_that_players_will_show(tmp_path, codec):
    """Red, green and blue by the matrix that the file names, not by another."""
    colours = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]])
    frames = colours[:, None, None].expand(3, 32, 32, 3)
    images, _, _ = read(write(tmp_path / "film", frames, codec=codec, quality=100))
    assert np.abs(images - frames.numpy() * 255).max() < 4  # another matrix: 12 and more


@pytest.mark.parametrize(("codec", "slack"), [("h264", 2048), ("ffv1", 0), ("prores", 0)])
@pytest.mark.parametrize("seconds", [0.1, 2.0])
def test_sound_is_as_long_as_the_film(tmp_path, frames, codec, slack, seconds):
    """Cut or filled up with silence; AAC comes in blocks of 1024 samples."""
    rate = 44100
    tone = torch.sin(torch.arange(int(seconds * rate)) * 0.05)[None].expand(2, -1) * 0.5
    path = write(tmp_path / "film", frames, sound=Sound(tone, rate), codec=codec)
    with av.open(str(path)) as container:
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=-1)
        stream = container.streams.audio[0]
        length = float(stream.duration * stream.time_base)
    samples = heard.size // 2
    assert 0 <= samples - round(FRAMES / 24 * rate) <= slack
    assert length == pytest.approx(FRAMES / 24, abs=0.025)


def test_sound_may_begin_later():
    sound = Sound(torch.ones(1, 4), 10, begin=0.3)
    assert sound.cut(0, 5).tolist() == [[0, 0, 0, 1, 1]]
    assert sound.cut(5, 12).tolist() == [[1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(("begin", "length"), [(0.0, 1.0), (0.25, 0.5), (0.0, 0.3)])
def test_sound_of_a_file_is_read_while_it_is_needed(tmp_path, frames, begin, length):
    """As of the whole of it in memory, whatever parts it is asked for in."""
    tone = torch.sin(torch.arange(8000) * 0.03)[None] * 0.5
    path = write(
        tmp_path / "film", frames.repeat(3, 1, 1, 1), sound=Sound(tone, 8000), codec="ffv1"
    )
    sound = FileSound(str(path), 0.0, length, begin)
    assert (sound.rate, sound.layout) == (8000, "mono")
    cuts = [sound.cut(start, start + 700) for start in range(0, 14000, 700)]
    wanted = Sound(tone[:, : round(length * 8000)], 8000, begin).cut(0, 14000)
    assert (torch.cat(cuts, dim=1) - wanted).abs().max() < 1e-4


def test_frame_rates():
    assert exact_rate(24) == 24 and exact_rate(12.5) == Fraction(25, 2)
    assert exact_rate(23.976) == Fraction(24000, 1001) == exact_rate(24000 / 1001)
    assert exact_rate(29.97) == Fraction(30000, 1001)


class Cancelled(BaseException):
    """As ComfyUI's."""


@pytest.mark.parametrize("codec", ["h264", "png"])
@pytest.mark.parametrize("pieces", [0, 2])
def test_a_cancelled_film_leaves_nothing(tmp_path, frames, codec, pieces):
    with (
        pytest.raises(Cancelled),
        open_writer(tmp_path / "film", VideoSettings(codec), RATE) as out,
    ):
        for piece in frames.split(4)[:pieces]:
            out.write(piece)
        raise Cancelled
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="its limit on the size of files")
@pytest.mark.parametrize("codec", ["ffv1", "png"])
@pytest.mark.parametrize("room", [0, 2000, 30000])
def test_a_full_disk_leaves_nothing_and_is_told(tmp_path, codec, room):
    """The system refuses to write on, as on a full disk."""
    import resource

    noise = torch.rand(FRAMES, 48, 80, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Bound to a size that the test's own files never reach, so that no other is cut.
    room = min(room, 8000) if codec == "png" else room
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="the video could not be written.*nothing is left"):
            write(tmp_path / "film", noise, codec=codec)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(tmp_path.iterdir())


def test_a_codec_that_is_not_there_names_those_that_are(monkeypatch):
    find = codecs.find_encoder
    monkeypatch.setattr(codecs, "find_encoder", lambda name: "" if name == "hevc" else find(name))
    with pytest.raises(ValueError, match="codec is 'hevc'; it must be one .*h264, .*ffv1, png"):
        VideoSettings("hevc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codec": "mpeg2"}, "codec is 'mpeg2'; it must be one of: h264"),
        ({"quality": 101}, "quality is 101; .* nearest: 100"),
        ({"bit_depth": "12"}, "bit_depth is '12'; it must be one of: 8, 10"),
    ],
)
def test_settings_that_are_not_legal(settings, message):
    with pytest.raises(ValueError, match=message):
        VideoSettings(**settings)


def test_a_film_that_is_too_small_for_its_codec(tmp_path):
    message = "codec is 'hevc'; it must be one for 80 x 48 px .hevc takes 64.*nearest: h264, av1"
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "film", torch.zeros(1, 48, 80, 3), codec="hevc")
    assert not any(tmp_path.iterdir())


def test_sound_of_another_number_of_channels():
    with pytest.raises(ValueError, match="audio has 4 channels; it must have 1, 2 or 6; nearest"):
        Sound(torch.zeros(4, 9), 8000)


def test_when_few_packets_are_decoded_follows_from_when_they_are_shown():
    packets = [SimpleNamespace(pts=pts, dts=-(10**12)) for pts in (0, 3, 1, 2)]
    time_few(packets, 0)
    assert [packet.dts for packet in packets] == [-1, 0, 1, 2]
    time_few(packets[:1], 2)
    assert packets[0].dts == -2
    assert all(packet.dts <= packet.pts for packet in packets)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_film_of_a_few_frames_has_them(tmp_path, count):
    for number in range(4):  # what came of it was a matter of luck
        path = tmp_path / f"film{number}.mp4"
        with FilmWriter(path, VideoSettings("hevc", 90), Fraction(24)) as writer:
            writer.write(torch.zeros(count, 64, 64, 3))
        with av.open(str(path)) as container:
            assert len(list(container.decode(video=0))) == count
