"""Video files as films: the right frames at any rate, upright, in the right colours."""

import io
import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from skyreels_model.framing import resample
from skyreels_model.video import reader
from skyreels_model.video.codecs import VideoSettings
from skyreels_model.video.reader import FileFilm
from skyreels_model.video.writer import FilmWriter

SIZE = (48, 32)  # width, height


def numbered(count):
    """Frames (n, 32, 48, 3), each of a grey of its own."""
    return (torch.arange(count) / 255).reshape(-1, 1, 1, 1).expand(-1, 32, 48, 3)


def write(path, frames, rate=24, codec="ffv1"):
    with FilmWriter(path, VideoSettings(codec, 100), Fraction(rate)) as writer:
        writer.write(frames)
    return str(path)


def encode(path, frames, pixels, codec, times=None, unit=Fraction(1, 24), **context):
    """A file of frames (n, H, W, 3) of 8 bits, however it is asked for."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.time_base = pixels, unit
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        wanted = {"dst_color_range": context["color_range"]} if "color_range" in context else {}
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(format=pixels, **wanted)
            frame.pts, frame.time_base = (times[number] if times else number), unit
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return str(path)


def film(path, fps=24, **options):
    return FileFilm("video_file", path, fps, *SIZE, **options)


def greys(frames):
    """The number that each frame has as its grey."""
    return (frames[:, 0, 0, 0] * 255).round().int().tolist()


def test_frames_are_those_of_the_file(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(40))
    clip = film(path)
    assert len(clip) == 40 and torch.equal(clip.cut(35), numbered(40)[35:])
    assert greys(torch.cat(list(clip.pieces()))) == list(range(40))
    assert clip.describe() == "video_file: 40 frames at 24 a second, as the schedule's"


def test_files_in_which_jumps_land_late(tmp_path):
    """A transport stream has no index: a jump lands at the next whole picture, or after it."""
    frames = (numbered(60) * 255).byte().numpy() * 4
    path = encode(tmp_path / "a.ts", frames, "yuv420p", "libx264", gop_size=12, max_b_frames=2)
    clip = film(path)
    for start in (0, 5, 12, 13, 30, 58):
        found = greys(clip.cut(start, start + 2))
        assert found == pytest.approx([4 * start, 4 * start + 4], abs=3), start


def test_two_readers_of_one_content_keep_their_places(tmp_path):
    """Of more content than a reader takes at once."""
    noise = torch.rand(60, 32, 48, 3, generator=torch.Generator().manual_seed(0))
    content = io.BytesIO(pathlib.Path(write(tmp_path / "a.mkv", noise)).read_bytes())
    clip = film(content)
    turns = zip(clip.frames(0, 60), clip.frames(0, 60), film(content).cut(), strict=True)
    assert all(torch.equal(one, frame) and torch.equal(two, frame) for one, two, frame in turns)


def test_only_frames_that_are_looked_at_are_brought_to_size(tmp_path, monkeypatch):
    path, made = write(tmp_path / "a.mp4", numbered(60), codec="h264"), []
    original = reader.to_image
    monkeypatch.setattr(reader, "to_image", lambda frame: made.append(1) or original(frame))
    clip = film(path)
    assert len(clip) == 60 and not made
    clip.cut(55)
    assert len(made) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rate", "fps"), [(30, 24), (24, 30), (60, 24), (Fraction(24000, 1001), 24)]
)
def test_another_frame_rate_keeps_the_speed(tmp_path, rate, fps):
    path = write(tmp_path / "a.mp4", numbered(60), rate)
    for from_end in (False, True):
        clip = film(path, fps, from_end=from_end)
        wanted = list(resample(60, rate, fps, from_end))
        assert greys(clip.cut()) == wanted and greys(clip.cut(7, 9)) == wanted[7:9]


def test_times_that_are_not_even(tmp_path):
    """The nearest in time, from the first or the last."""
    times = [0, 100, 150, 600, 640, 980]  # milliseconds
    frames = (numbered(6) * 255).round().byte().numpy()
    path = encode(tmp_path / "a.mkv", frames, "bgr0", "ffv1", times, Fraction(1, 1000))
    assert greys(film(path, 10).cut()) == [0, 1, 2, 2, 3, 3, 3, 4, 4, 5]
    assert greys(film(path, 10, from_end=True).cut()) == [1, 2, 2, 3, 3, 3, 4, 4, 5, 5]


def test_a_part_of_a_file(tmp_path):
    path = write(tmp_path / "a.mp4", numbered(48))
    assert greys(film(path, begin=0.5, seconds=0.25).cut()) == list(range(12, 18))
    with pytest.raises(ValueError, match="video_file is 'a video from 9 s on'"):
        len(film(path, begin=9.0))


COLOURS = np.array([[220, 30, 40], [30, 200, 60], [40, 50, 210], [120, 120, 120]], np.uint8)
KINDS = {
    "full range": ("a.mp4", "yuvj420p", "libx264", {"color_range": 2}),
    "limited": ("a.mp4", "yuv420p", "libx264", {"color_range": 1}),
    "10 bit": ("a.mkv", "yuv444p10le", "libx264", {}),
    "planes": ("a.mkv", "gbrp10le", "ffv1", {}),
    "with alpha": ("a.mov", "rgba", "png", {}),
    "old": ("a.avi", "yuv420p", "mpeg4", {"bit_rate": 9_000_000}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_colours_of_any_format(tmp_path, kind):
    name, pixels, codec, context = KINDS[kind]
    frames = np.broadcast_to(COLOURS[:, None, None], (4, 32, 48, 3))
    clip = film(encode(tmp_path / name, frames, pixels, codec, **context))
    assert len(clip) == 4
    assert np.abs(clip.cut().numpy() * 255 - frames).max() < 8


def turn(path):
    """Write into an mp4 file that it is shown turned by a quarter."""
    content = bytearray(open(path, "rb").read())
    begin = content.index(b"tkhd") + 44
    matrix = [0, 1 << 16, 0, -1 << 16, 0, 0, 32 << 16, 0, 1 << 30]
    content[begin : begin + 36] = b"".join(part.to_bytes(4, "big", signed=True) for part in matrix)
    open(path, "wb").write(content)
    return path


def test_a_film_that_was_taken_upright_is_shown_so(tmp_path):
    """As a telephone says it: the picture lies, and is to be turned clockwise."""
    frames = torch.zeros(3, 32, 48, 3)
    frames[:, :16, :24] = 1.0  # in the left upper corner, which comes to the right
    clip = FileFilm("video_file", turn(write(tmp_path / "a.mp4", frames)), 24, 32, 48)
    shown = clip.cut(0, 1)[0, ..., 0]
    assert shown.shape == (48, 32)
    assert shown[:24, 16:].min() > 0.9 and shown[24:].max() < 0.1 and shown[:, :16].max() < 0.1


@pytest.mark.parametrize("content", [b"", b"no video at all", None])
def test_what_is_no_video_is_told(tmp_path, content):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="video_file is .*it must be a video that FFmpeg can read"):
        len(film(str(path)))


def test_a_file_with_sound_alone_is_told(tmp_path):
    path = str(tmp_path / "a.wav")
    with av.open(path, "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match="video_file is 'a file without pictures"):
        len(film(path))
