"""A film's fragments become the file that FFmpeg would have made, without its memory."""

import contextlib
import struct
import sys
from array import array
from fractions import Fraction

import av
import pytest
import torch

from benchmarks.long_film import in_use
from skyreels_model.video import boxes, fragments, writer
from skyreels_model.video.codecs import CODECS, VideoSettings
from skyreels_model.video.fragments import join_fragments
from skyreels_model.video.segments import JoinedWriter
from skyreels_model.video.sound import Sound
from skyreels_model.video.writer import FilmWriter

RATE = Fraction(8)
WHOLE = {"movflags": "use_metadata_tags+faststart"}


def write(path, codec="h264", frames=20, sound=True, **texts):
    """A picture that changes, of several fragments."""
    tone = torch.sin(torch.arange(48000 * 3) * 0.03)[None] * 0.5
    settings, heard = VideoSettings(codec), Sound(tone, 48000) if sound else None
    with FilmWriter(path, settings, RATE, texts, heard) as out:
        for level in torch.linspace(0.1, 0.9, frames):
            out.write(level.expand(1, 64, 64, 3))
    return path


def told(path):
    """What a file says of itself and its streams, and of each packet."""
    with av.open(str(path)) as container:
        streams = [
            (one.frames, one.duration, one.start_time, one.time_base, one.codec_context.codec_tag)
            for one in container.streams
        ]
        rate = container.streams.video[0].average_rate
        about = container.duration, container.start_time, container.metadata.get("about")
        packets = [
            (packet.stream.index, packet.dts, packet.pts, packet.is_keyframe, bytes(packet))
            for packet in container.demux()
            if packet.size
        ]
    # FFmpeg hands PCM out in pieces of any length.
    sounds = b"".join(packet[-1] for packet in packets if packet[0] == 1)
    pictures = [packet for packet in packets if packet[0] == 0]
    return about, rate, streams, pictures, sounds


def head(path):
    """What a file says of itself in all, but for when it was made."""
    content = path.read_bytes()
    place = content.index(b"mvhd")
    return content[place + 16 : place + 104]


@pytest.mark.slow
@pytest.mark.parametrize("codec", [name for name in CODECS if name != "png"])
def test_a_file_is_the_one_that_ffmpeg_would_have_made(tmp_path, monkeypatch, codec):
    made = write(tmp_path / "ours", codec, about="a film")
    ours = told(made)
    monkeypatch.setattr(writer, "OPTIONS", WHOLE)
    monkeypatch.setattr(writer, "join_fragments", lambda path: None)
    theirs = write(tmp_path / "theirs", codec, about="a film")
    assert ours == told(theirs) and head(made) == head(theirs)
    assert ours[0][2] == "a film" and ours[2][0][0] == 20 and len(ours[4]) > 1000


def refuse(path):
    raise ValueError("what no one knows")


def kinds(path):
    with path.open("rb") as file:
        return [kind for kind, *_ in boxes.read_boxes(file)]


def test_the_index_is_in_front_and_fragments_are_gone(tmp_path):
    assert kinds(write(tmp_path / "film")) == [b"ftyp", b"moov", b"free", b"mdat"]


def test_a_file_of_over_4_gb_has_long_numbers(tmp_path, monkeypatch):
    """Where pictures lie, and how long streams are."""
    small = write(tmp_path / "small", "hevc")
    monkeypatch.setattr(fragments, "LARGE", 1000)
    large = write(tmp_path / "large", "hevc")
    assert told(large) == told(small)
    content = large.read_bytes()
    assert content.count(b"co64") == 2 and b"stco" not in content
    assert b"mdhd\1" in content and b"mdhd\1" not in small.read_bytes()


def test_pictures_lie_beyond_4_gb(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "join_fragments", refuse)
    path, far = write(tmp_path / "film", sound=False), 1 << 32
    with path.open("rb") as file:
        movie = fragments._read_movie(file, tmp_path)
    (track,) = movie.tracks.values()
    track.chunks = array("Q", [place + far for place in track.chunks])
    _, moved, large = fragments._find_room(movie, path.stat().st_size + far)
    index = b"".join(part for part in movie.write(moved, large) if isinstance(part, bytes))
    places = [place + moved for place in track.chunks]
    assert large and struct.pack(f">{len(places)}Q", *places) in index


def test_sound_of_over_65536_samples_a_second_is_written_sample_by_sample(tmp_path):
    tone = Sound(torch.rand(2, 96000 * 3) - 0.5, 96000)
    with FilmWriter(tmp_path / "film", VideoSettings("prores"), RATE, sound=tone) as out:
        out.write(torch.rand(20, 64, 64, 3))
    with av.open(str(tmp_path / "film")) as container:
        assert container.streams.audio[0].frames == 96000 * 20 / RATE


def test_long_tables_lie_on_the_disk_and_pictures_move_in_pieces(tmp_path, monkeypatch):
    whole = write(tmp_path / "whole").read_bytes()
    monkeypatch.setattr(boxes, "KEPT", 10)
    monkeypatch.setattr(fragments, "MOVED", 1000)
    assert write(tmp_path / "pieces").read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("size", [None, 100])
def test_what_is_no_file_in_fragments_is_left_as_it_is(tmp_path, size):
    path = write(tmp_path / "film", sound=False)
    content = path.read_bytes()[:size]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="without fragments|bytes, where"):
        join_fragments(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("known", "other"),
    [
        (b"tfhd\0\2\0\x38\0\0\0\1", b"tfhd\0\2\0\x38\0\0\0\7"),  # of a seventh stream
        (b"trun\0\0\2\5\0\0\0\2", b"trun\0\0\2\5\0\0\0\7"),  # of seven samples
    ],
)
def test_fragments_that_cannot_be_understood_are_left_as_they_are(
    tmp_path, monkeypatch, known, other
):
    monkeypatch.setattr(writer, "join_fragments", refuse)
    path = write(tmp_path / "film", frames=2, sound=False)
    content = path.read_bytes()
    assert known in content
    path.write_bytes(content.replace(known, other))
    with pytest.raises(ValueError, match="no place in an index"):
        join_fragments(path)
    assert path.read_bytes() == content.replace(known, other)


def test_a_film_that_cannot_be_joined_stays_in_fragments(tmp_path, monkeypatch, caplog):
    whole = write(tmp_path / "whole")
    monkeypatch.setattr(writer, "join_fragments", refuse)
    left = write(tmp_path / "left")
    assert "left is whole, but in fragments" in caplog.text and "what no one knows" in caplog.text
    assert kinds(left)[:4] == [b"ftyp", b"moov", b"moof", b"mdat"]
    assert told(left)[3:] == told(whole)[3:]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's count of what is in use")
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path):
    """FFmpeg's own index takes 74 bytes a frame: 0.6 MB here."""
    part = write(tmp_path / "part", frames=200, sound=False)
    with JoinedWriter(tmp_path / "film", VideoSettings(), RATE) as out:
        used = []
        for _ in range(44):
            out.append(part)
            used.append(in_use())
        assert used[-1] - used[3] < 0.2
    with av.open(str(tmp_path / "film")) as container:
        assert container.streams.video[0].frames == 8800


@pytest.mark.skipif(sys.platform != "linux", reason="its limit on the size of files")
def test_a_disk_without_room_for_the_index_leaves_the_fragments(tmp_path, monkeypatch, caplog):
    import resource

    monkeypatch.setattr(writer, "join_fragments", refuse)
    left = write(tmp_path / "left")
    monkeypatch.setattr(writer, "join_fragments", join_fragments)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left.stat().st_size + 100, before[1]))
    try:
        film = write(tmp_path / "film")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "there is no room for its index" in caplog.text
    assert film.read_bytes() == left.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["film", "left"]


def test_what_a_killed_run_has_written_plays(tmp_path):
    """As far as FFmpeg has handed it to the system, a quarter of a MB at a time."""
    with FilmWriter(tmp_path / "film", VideoSettings(codec="ffv1"), RATE) as out:
        for _ in range(48):
            out.write(torch.rand(1, 64, 64, 3))
        (tmp_path / "left.mp4").write_bytes(out.unfinished.read_bytes())
    shown = 0
    with av.open(str(tmp_path / "left.mp4")) as container:
        # The last frame may be cut off.
        with contextlib.suppress(av.error.InvalidDataError):
            for _ in container.decode(video=0):
                shown += 1
    assert 16 <= shown <= 48
