"""Films to look at: frames in memory, and those of files, of which few are decoded."""

import io

import av
import numpy as np
import pytest
import torch
from tiny_words.films import write_film

from skyreels_model.words import clips
from skyreels_model.words.clips import FileClip, ImageClip, fit_size, sample_indices

BRIGHT = [20 + 37 * index % 200 for index in range(200)]  # of each frame, all far apart


def quiet(_share):
    pass


def brightness(clip, indices):
    return clip.take(indices, 8, 10).float().mean((1, 2, 3)).tolist()


@pytest.fixture(scope="module")
def film_file(tmp_path_factory):
    """200 frames with the brightness `BRIGHT`, with frames that are coded out of order."""
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", BRIGHT, bf="2")


# Of the published sampler: numpy's round of k (T - 1) / 16.
@pytest.mark.parametrize(
    ("count", "indices"),
    [
        (1, [0] * 16),
        (2, [0] * 9 + [1] * 7),
        (16, [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 14]),
        (17, list(range(16))),
        (97, list(range(0, 96, 6))),
        (121, [0, 8, 15, 22, 30, 38, 45, 52, 60, 68, 75, 82, 90, 98, 105, 112]),
    ],
)
def test_sixteen_frames_are_sampled_as_published(count, indices):
    assert sample_indices(0, count) == indices
    assert sample_indices(100, 100 + count) == [100 + index for index in indices]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
    ],
)
def test_the_frames_of_a_file_are_the_right_ones(tmp_path, suffix, codec):
    path = write_film(tmp_path / f"film.{suffix}", BRIGHT[:100], codec=codec)
    clip, indices = FileClip(path), sample_indices(0, 100)
    assert len(clip) == 100 and clip.size == (48, 64)
    assert clip.second(48) == pytest.approx(2, abs=1e-3)
    assert clip.second(100) == pytest.approx(100 / 24, abs=2e-3)
    assert brightness(clip, indices) == pytest.approx([BRIGHT[i] for i in indices], abs=6)
    assert brightness(clip, [99, 0, 50, 50]) == pytest.approx(
        [BRIGHT[i] for i in (99, 0, 50, 50)], abs=6
    )


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_that_is_broken_off_has_the_frames_before(tmp_path, in_memory):
    """In this kind of file a jump to the beginning lands late."""
    path = write_film(tmp_path / "film.ts", BRIGHT[:100])
    with open(path, "rb") as file:
        half = io.BytesIO(file.read()[:9400])
    if not in_memory:
        (tmp_path / "half.ts").write_bytes(half.getvalue())
    clip = FileClip(half if in_memory else str(tmp_path / "half.ts"))
    count = len(clip)
    assert 20 < count < 80 and len(list(clip.go_through(quiet))) == count
    indices = sample_indices(0, count)
    assert brightness(clip, indices) == pytest.approx([BRIGHT[i] for i in indices], abs=6)
    assert not in_memory or half.tell() == 0


def test_a_trimmed_video_has_the_frames_in_it(film_file):
    clip = FileClip(film_file, start=2.0, duration=3.0)
    assert len(clip) == 72
    assert brightness(clip, [0, 71]) == pytest.approx([BRIGHT[48], BRIGHT[119]], abs=6)
    assert len(list(clip.go_through(quiet))) == 72


def test_a_film_in_bytes_is_read_as_one_in_a_file(film_file):
    with open(film_file, "rb") as file:
        clip = FileClip(io.BytesIO(file.read()))
    assert brightness(clip, [150]) == pytest.approx([BRIGHT[150]], abs=6)


def test_frames_in_memory_are_taken_as_those_of_a_file():
    images = torch.tensor(BRIGHT[:50])[:, None, None, None].expand(50, 48, 64, 3) / 255
    clip = ImageClip(images, 25)
    assert (len(clip), clip.size, clip.second(50)) == (50, (48, 64), 2.0)
    assert brightness(clip, [0, 49]) == pytest.approx([BRIGHT[0], BRIGHT[49]], abs=1)
    assert [round(f.mean()) for f in clip.go_through(quiet)] == BRIGHT[:50]


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_images_and_those_with_alpha_have_three_channels(channels):
    clip = ImageClip(torch.rand(2, 8, 8, channels), 24)
    assert clip.take([0, 1], 4, 4).shape == (2, 4, 4, 3)
    assert [frame.shape for frame in clip.go_through(quiet)] == [(8, 8, 3)] * 2


def test_a_film_turned_by_a_phone_is_seen_upright():
    """The host turns such frames so; the left half, here the dark one, comes to the bottom."""
    picture = np.full((48, 64, 3), 200, np.uint8)
    picture[:, :32] = 0
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")

    class Turned:
        rotation, reformat = 90, staticmethod(frame.reformat)

    upright = clips._show(Turned, 32, 24, "rgb24")
    assert upright.shape == (32, 24, 3)
    assert upright[:14].min() > 150 and upright[18:].max() < 50


def test_an_hour_is_sampled_without_decoding_it(tmp_path, monkeypatch):
    """Fewer frames than 16 groups of pictures, of 3600."""
    values = (60 + index // 225 * 10 for index in range(3600))
    path = write_film(tmp_path / "hour.mp4", values, 1, preset="ultrafast", bf="0", gop=100)
    decoded, original = [], FileClip._decode

    def count(self, *arguments):
        for frame in original(self, *arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(FileClip, "_decode", count)
    clip = FileClip(path)
    assert clip.second(len(clip)) == 3600
    indices = sample_indices(0, len(clip))
    found = brightness(clip, indices)
    assert found == pytest.approx([60 + index // 225 * 10 for index in indices], abs=6)
    assert len(decoded) <= 16 * 100


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 5000])
def test_a_file_that_is_no_film_is_refused(tmp_path, content):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="video cannot be read .*it must be a whole video file"):
        FileClip(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="video cannot be read"):
        FileClip(str(tmp_path / "none.mp4"))


def test_sound_alone_is_refused(tmp_path):
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match="video is 'without pictures'; it must be"):
        FileClip(str(tmp_path / "sound.wav"))


def test_a_trim_without_frames_is_refused(film_file):
    with pytest.raises(ValueError, match="video is 'without frames'; it must be at least one"):
        FileClip(film_file, start=100.0)


@pytest.mark.parametrize("images", [torch.zeros(0, 8, 8, 3), torch.zeros(8, 8, 3)])
def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match="images is .*at least one image"):
        ImageClip(images, 24)


def test_images_that_are_not_finite_are_refused():
    clip = ImageClip(torch.full((2, 8, 8, 3), torch.nan), 24)
    with pytest.raises(ValueError, match="images is 'not finite'"):
        clip.take([0], 8, 8)


def test_a_sampled_film_can_be_cancelled(film_file):
    def cancel(_share):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FileClip(film_file, tick=cancel)
    with pytest.raises(KeyboardInterrupt):
        next(FileClip(film_file).go_through(cancel))


def test_sizes_are_the_published_or_as_many_pixels():
    assert fit_size(1080, 1920, keep_proportions=False) == (420, 360)
    height, width = fit_size(1080, 1920, keep_proportions=True)
    assert width / height == pytest.approx(16 / 9, rel=0.01)
    assert height * width == pytest.approx(420 * 360, rel=0.01)
