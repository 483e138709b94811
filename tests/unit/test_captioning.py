"""Films looked at and told: frames from files, cuts, captions, and storyboards of them."""

import io
import json
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from tiny_words import ScriptedEngine

from skyreels_model.plan.storyboard import parse_storyboard
from skyreels_model.words import NoAnswerError, clips, film
from skyreels_model.words.captioning import (
    Settings,
    caption,
    caption_spans,
    escape_weights,
    look_at,
    shorten,
)
from skyreels_model.words.clips import FileClip, ImageClip, fit_size, sample_indices
from skyreels_model.words.cuts import Span, divide, find_cuts, read_cuts
from skyreels_model.words.film import write_shots, write_storyboard

BRIGHT = [20 + 37 * index % 200 for index in range(200)]  # of each frame, all far apart
ANSWER = json.dumps({"subjects": [], "lighting": "Dim.", "camera_motion": "pans"})
FRAMES = torch.zeros(16, 8, 8, 3, dtype=torch.uint8)


def quiet(_share):
    pass


def write_film(path, frames, fps=24, codec="libx264", size=(48, 64), **options):
    """Frames, each a number (grey) or an array (H, W, 3), as a file, a whole picture every 12."""
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.pix_fmt, stream.gop_size = "yuv420p", options.pop("gop", 12)
        stream.options = options
        stream.height, stream.width = size
        for index, value in enumerate(frames):
            picture = value if np.ndim(value) else np.full((*size, 3), value, np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


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


def scene(seed, count, speed):
    """A texture that moves to the left, (count, 60, 80, 3)."""
    draw = np.random.RandomState(seed)
    coarse = draw.randint(0, 255, (8, 40, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    coarse = coarse // 2 + np.uint8(draw.randint(0, 120))
    return [np.ascontiguousarray(coarse[:60, i * speed : i * speed + 80]) for i in range(count)]


def test_cuts_are_found_and_motion_is_none(tmp_path):
    shots = [scene(1, 30, 2), scene(2, 40, 1), scene(3, 30, 4)]
    path = write_film(tmp_path / "shots.mp4", sum(shots, []), size=(60, 80))
    shares = []
    assert find_cuts(FileClip(path), 0.5, shares.append) == [30, 70]
    assert shares == sorted(shares) and 0 <= shares[0] and shares[-1] <= 1
    images = torch.from_numpy(np.stack(sum(shots, []))) / 255
    assert find_cuts(ImageClip(images, 24), 0.5, quiet) == [30, 70]
    assert find_cuts(ImageClip(images[:30], 24), 0.5, quiet) == []
    assert find_cuts(ImageClip(images[:1], 24), 0.5, quiet) == []


def test_without_the_package_that_finds_cuts_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(ValueError, match="cuts is empty.*it must be.*pip install scenedetect"):
        find_cuts(ImageClip(torch.zeros(3, 8, 8, 3), 24), 1, quiet)


CLIP = ImageClip(torch.zeros(240, 8, 8, 3), 24)


@pytest.mark.parametrize(
    ("text", "frames"),
    [("2.5, 4", [60, 96]), ("2.5s\n4s,", [60, 96]), ("0, 0.01, 10", []), ("0.0416", [1])],
)
def test_typed_cuts_are_the_nearest_frames(text, frames):
    if text.startswith("0, "):
        text = "0, 10"
    assert read_cuts(text, CLIP) == frames


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a", "cuts is 'a'; it must be seconds"),
        ("4, 2", "go forward"),
        ("2, 2.001", "go forward"),
        ("11", "cuts is 11; it must be 0 to 10; nearest: 10"),
        ("-1", "cuts is -1"),
        ("nan", "cuts is nan"),
    ],
)
def test_typed_cuts_that_are_none_are_refused(text, error):
    with pytest.raises(ValueError, match=error):
        read_cuts(text, CLIP)


def test_long_shots_are_divided_into_parts_that_go_on():
    assert divide(CLIP, [60], 4) == [
        Span(0, 60, True),
        Span(60, 150, True),
        Span(150, 240, False),
    ]
    assert divide(CLIP, [60], 0) == [Span(0, 60, True), Span(60, 240, True)]
    assert divide(CLIP, [], 10) == [Span(0, 240, True)]
    slow = ImageClip(torch.zeros(2, 8, 8, 3), 0.1)
    assert divide(slow, [], 1) == [Span(0, 1, True), Span(1, 2, False)]


def test_more_shots_than_a_storyboard_takes_are_refused():
    with pytest.raises(ValueError, match="shots of the video is 1001; it must be at most 1000"):
        divide(ImageClip(torch.zeros(1001, 1, 1, 1), 24), range(1, 1001), 0)


def test_a_shot_is_asked_about_as_published():
    engine = ScriptedEngine([ANSWER])
    caption(FRAMES, Settings(engine, seed=7), quiet)
    ((message,), sampling), *_ = engine.asked
    assert (message.role, message.fps, sampling.seed) == ("user", 2.0, 7)
    assert message.pictures is FRAMES
    assert (sampling.temperature, sampling.max_tokens) == (0.05, 2048)
    assert sampling.schema["required"][0] == "subjects"
    for word in (
        "subjects",
        "TYPES",
        "sub_type",
        "extreme_close_up",
        "overlooking_view",
        "lighting",
    ):
        assert word in message.text


def test_a_single_frame_is_a_picture_and_more_are_a_clip():
    images = torch.rand(5, 8, 8, 3)
    assert look_at(ImageClip(images, 24), Span(2, 3, True)).shape == (1, 420, 360, 3)
    assert look_at(ImageClip(images, 24), Span(0, 5, True)).shape == (16, 420, 360, 3)
    engine = ScriptedEngine([ANSWER])
    caption(FRAMES[:1], Settings(engine), quiet)
    assert engine.asked[0][0][0].fps is None


def test_own_instructions_are_asked():
    engine = ScriptedEngine([ANSWER])
    caption(FRAMES, Settings(engine, instructions="Tell {all}."), quiet)
    assert engine.asked[0][0][0].text == "Tell {all}."


def test_an_answer_that_cannot_be_read_is_asked_for_again():
    engine = ScriptedEngine(["No.", "", ANSWER])
    found = caption(FRAMES, Settings(engine, seed=2**64 - 1), quiet)
    assert found.description.lighting == "Dim." and found.raw == ANSWER and len(found.notes) == 2
    assert [s.temperature for _, s in engine.asked] == [0.05, 0.4, 0.8]
    assert [s.seed for _, s in engine.asked] == [2**64 - 1, 0, 1]


def test_after_three_answers_that_cannot_be_read_it_is_an_error_with_the_last():
    engine = ScriptedEngine(["No.", "Why?", "A horse."])
    with pytest.raises(NoAnswerError, match=r"A horse\. \(asked 3 times\)") as caught:
        caption(FRAMES, Settings(engine), quiet)
    assert caught.value.raw == "A horse."


def test_or_its_text_is_the_caption():
    engine = ScriptedEngine(["No.", "", "A  horse (grey)."])
    found = caption(FRAMES, Settings(engine, if_unreadable="use the text"), quiet)
    assert found.t2v == found.i2v == "A horse \\(grey\\)." and found.raw == "A  horse (grey)."
    assert found.description.says_nothing and len(found.notes) == 3


def test_or_a_dash_where_there_is_no_text_either():
    """So that a film of a thousand shots is not lost to one of them."""
    engine = ScriptedEngine(["", "<think>hm</think>", ""])
    found = caption(FRAMES, Settings(engine, if_unreadable="use the text"), quiet)
    assert found.t2v == found.i2v == "-" and found.raw == "<think>hm</think>"
    assert len(found.notes) == 3


def test_thoughts_are_no_captions_and_stay_in_the_raw_answer():
    engine = ScriptedEngine(["<think>a {cat}?</think> " + ANSWER])
    found = caption(FRAMES, Settings(engine), quiet)
    assert found.t2v == "Dim. Pans." and found.raw.startswith("<think>")


def test_a_loop_is_cut_and_what_was_whole_is_kept():
    boat = json.dumps({"TYPES": {"type": "Vehicles", "sub_type": "Boat"}, "appearance": "Red."})
    looping = '{"lighting": "Dim.", "subjects": [' + (boat + ", ") * 60
    found = caption(FRAMES, Settings(ScriptedEngine([looping])), quiet)
    assert found.description.lighting == "Dim." and len(found.description.subjects) == 1
    assert found.notes == ("a loop in the answer was cut",)


def test_a_model_that_fuses_nothing_leaves_the_fields_joined():
    fusing = ScriptedEngine([""])
    found = caption(FRAMES, Settings(ScriptedEngine([ANSWER]), fusing), quiet)
    assert found.t2v == "Dim. Pans." and found.i2v == "- Pans."
    assert "were joined instead" in found.notes[0]


def test_a_model_without_eyes_is_refused():
    with pytest.raises(ValueError, match="reads text only"):
        caption(FRAMES, Settings(ScriptedEngine([ANSWER], sees_pictures=False)), quiet)


def test_an_error_says_which_shot_it_was():
    engine = ScriptedEngine([ANSWER, "a", "b", "c"])
    spans = [Span(0, 60, True), Span(60, 240, True)]
    with pytest.raises(NoAnswerError, match=r"shot 2 of 2, at 2\.5 s: .*c \(asked"):
        caption_spans(CLIP, spans, Settings(engine), lambda number: quiet)


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("One. Two. Three.", "One. Two."),
        ("One two three four", "One two"),
        ("a" * 30, "a" * 10),
        (" a \n b ", "a b"),
    ],
)
def test_long_texts_end_after_a_sentence_or_a_word(text, short):
    assert shorten(text, 10) == short


def test_brackets_of_a_caption_are_no_weights():
    assert escape_weights("a (red:1.5) \\(hat)") == "a \\(red:1.5\\) \\(hat\\)"


@pytest.mark.parametrize(
    "text",
    [
        "Plain.",
        "3: a list / 4s: of marks\n5s cut: and lines",
        "and/or / 0.5: this",
        "{a|b} (c) /",
        "at 10:30 / 11:30",
        "/ 7s: first",
        "\u732b\u304c / 3s: \u8d70\u308b",
    ],
)
def test_a_storyboard_of_any_captions_is_read_back(text):
    spans = [Span(0, 60, True), Span(60, 150, True), Span(150, 240, False)]
    written = write_storyboard(CLIP, spans, [text, text, text])
    shots = parse_storyboard(written, CLIP.second(240))
    assert [(shot.seconds, shot.cut) for shot in shots] == [
        (2.5, False),
        (3.75, True),
        (3.75, False),
    ]
    assert len({shot.prompt for shot in shots}) == 1
    assert set(shots[0].prompt) - set(", ") == set(text) - set("/, \n") | set(shots[0].prompt) & {
        "/"
    }


def test_many_long_captions_are_a_legal_storyboard(monkeypatch):
    """Each a legal prompt, and all of them not longer than a text may be."""
    monkeypatch.setattr(film, "MAX_LENGTH", 50_000)
    spans = [Span(index, index + 1, True) for index in range(100)]
    clip = ImageClip(torch.zeros(100, 1, 1, 1), 1)
    written = write_storyboard(clip, spans, ["A long sentence of a caption. " * 200] * 100)
    shots = parse_storyboard(written, 100)
    assert len(shots) == 100 and 45_000 < len(written) <= 50_000
    assert all(shot.prompt.endswith("caption.") for shot in shots)
    assert len(write_storyboard(clip, spans[:1], ["word " * 5000])) < 2500


def test_what_is_known_of_shots_is_json():
    spans = [Span(0, 60, True), Span(60, 240, False)]
    engine = ScriptedEngine([ANSWER, ANSWER])
    captions = caption_spans(CLIP, spans, Settings(engine), lambda number: quiet)
    first, second = json.loads(write_shots(CLIP, spans, captions))
    assert (first["start"], first["end"], second["end"]) == (0, 2.5, 10)
    assert (first["cut"], second["cut"]) == (True, False)
    assert first["description"]["lighting"] == "Dim." and first["raw"] == ANSWER
    assert first["t2v"] == "Dim. Pans."
