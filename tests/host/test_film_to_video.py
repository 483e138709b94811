"""Films straight to files through the host, and what its own nodes make of them."""

import importlib
import json
import sys

import av
import graphs
import numpy as np
import pytest
import torch

pytestmark = pytest.mark.usefixtures("kept_loaders")

FILM = {"frames": 25, "window": 17, "overlap": 9, "steps": 2, "fps": 12}
VIDEO = {"filename_prefix": "video/film", "codec": "ffv1", "quality": 80, "bit_depth": "8"}


@pytest.fixture
def output(host, tmp_path, monkeypatch):
    """The host's output folder."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


def filmed(**changes):
    """A film's graph with our node as "8"."""
    prompt = graphs.film(**FILM)
    given = {**VIDEO, "fps": 0.0, **changes}
    prompt["8"] = graphs.node("SkyReelsV2FilmToVideo", samples=["6", 0], vae=["3", 0], **given)
    return prompt


def levels(path):
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@pytest.fixture
def packets():
    """What was coded, bit by bit, of a file's streams."""

    def read(path):
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    return read


@pytest.fixture
def give(look):
    """`give(name, value)`: for the probe's node that gives it to any input."""
    given = next(m.GIVEN for name, m in sys.modules.items() if name.endswith("/host/probe"))
    return given.__setitem__


def test_the_file_has_the_frames_of_decode_and_core_takes_it(look, output, packets, give):
    """Get Video Components reads it; Save Video copies it without coding anew."""
    prompt = filmed()
    give("tone", {"waveform": torch.rand(1, 2, 5000) - 0.5, "sample_rate": 22050})
    prompt["9"] = graphs.node("SkyReelsV2TestGiver", name="tone")
    prompt["8"]["inputs"]["audio"] = ["9", 0]
    prompt["10"] = graphs.node("GetVideoComponents", video=["8", 0])
    prompt["11"] = graphs.node(
        "SaveVideo", video=["8", 0], filename_prefix="copy", format="auto", codec="auto"
    )
    frames, file, report, images, audio, fps = look(
        prompt, frames=["7", 0], file=["8", 1], report=["8", 2],
        images=["10", 0], audio=["10", 1], fps=["10", 2],
    )  # fmt: skip
    path = output / "video" / "film_00001_.mp4"
    assert file == str(path) and len(frames) == 25
    wanted = (frames * 255).round().to(torch.uint8).numpy()
    assert np.array_equal(levels(path), wanted)
    # The host's way of reading these pixels is up to a level off.
    assert (images * 255 - torch.from_numpy(wanted).float()).abs().max() < 1.5
    assert fps == 12 and audio["waveform"].shape[2] == round(25 / 12 * 22050)
    assert packets(output / "copy_00001_.mp4") == packets(path)
    assert report.startswith("video/film_00001_.mp4: 25 frames of 32 x 32 px, 12 a second, 2.08 s")
    assert [one.name for one in sorted(path.parent.iterdir())] == [path.name]


def test_the_workflow_is_in_the_file_as_core_writes_it(run_prompt, output, monkeypatch):
    import comfy.cli_args

    prompt = filmed()
    assert run_prompt(prompt).success
    with av.open(str(output / "video" / "film_00001_.mp4")) as container:
        assert (
            json.loads(container.metadata["prompt"])["8"]["class_type"] == "SkyReelsV2FilmToVideo"
        )
    monkeypatch.setattr(comfy.cli_args.args, "disable_metadata", True)
    assert run_prompt(filmed(quality=70)).success
    with av.open(str(output / "video" / "film_00002_.mp4")) as container:
        assert "prompt" not in container.metadata


@pytest.fixture(scope="module")
def part(look):
    """`part(name)`: a module of nodes/host as the host has loaded it."""
    (vae,) = look({"3": graphs.film()["3"]}, vae=["3", 0])
    package = type(vae).__module__.rsplit(".", 2)[0]
    return lambda name: importlib.import_module(f"{package}.{name}")


@pytest.fixture
def film(part):
    """`film(count)`: so many frames, which come one by one, `side` px wide and high."""
    frames = part("film.decoding").FilmFrames

    def make(count, stop=None, side=16):
        def pieces():
            for number in range(count):
                if number == stop:
                    import nodes

                    nodes.interrupt_processing()
                    import comfy.model_management

                    comfy.model_management.throw_exception_if_processing_interrupted()
                yield torch.full((1, side, side, 3), number / count)

        return frames(count, side, side, 10, pieces)

    return make


@pytest.fixture
def save(part, output):
    video = part("film.video")

    def run(film, prefix="film", fps=0.0, audio=None, **settings):
        return video.save_film(film, None, video.VideoSettings(**settings), prefix, fps, audio, {})

    return run


def test_a_folder_of_pictures_is_a_video_of_its_frame_rate(save, film, output):
    saved = save(film(6), codec="png")
    assert saved.path == output / "film_00001_" and saved.video.get_frame_rate() == 10
    components = saved.video.get_components()
    assert components.frame_rate == 10 and len(components.images) == 6
    saved.video.save_to(str(output / "copy.mp4"))
    with av.open(str(output / "copy.mp4")) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert np.array_equal(levels(output / "copy.mp4")[5], np.full((16, 16, 3), round(5 / 6 * 255)))


def test_prores_is_coded_again_where_mp4_is_asked_for(save, film, output):
    from comfy_api.latest import Types

    saved = save(film(3), codec="prores")
    assert saved.path.suffix == ".mov"
    saved.video.save_to(str(output / "copy.mp4"), codec=Types.VideoCodec.H264)
    assert len(levels(output / "copy.mp4")) == 3


def test_a_cancelled_film_leaves_no_file(save, film, output):
    import comfy.model_management

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        save(film(9, stop=6))
    assert not any(output.iterdir())
    assert save(film(2), fps=23.976).report.startswith("film_00001_.mp4: 2 frames")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prefix": "../film"}, "filename_prefix is '../film'; it must be a name"),
        ({"prefix": "video/"}, "filename_prefix is 'video/'; it must be a name"),
        (
            {"prefix": "video/" + "é" * 101},
            "filename_prefix has a name of 202 bytes, ééé.*; it must be 200 at",
        ),
        ({"prefix": "x" * 201 + "/film"}, "filename_prefix has a name of 201 bytes"),
        ({"fps": 241.0}, "fps is 241; it must be 0 to 240; nearest: 240"),
        ({"audio": {}}, "audio has no waveform"),
        ({"audio": {"waveform": torch.full((1, 1, 5), torch.nan), "sample_rate": 8000}}, "audio"),
        ({"audio": {"waveform": torch.zeros(1, 3, 5), "sample_rate": 8000}}, "audio has 3 chann"),
        ({"audio": {"waveform": torch.zeros(1, 1, 5), "sample_rate": 0}}, "audio is 0; it must"),
    ],
)
def test_what_is_not_legal_is_told_before_anything_is_decoded(save, film, output, given, message):
    with pytest.raises(ValueError, match=message):
        save(film(3, stop=0), **given)
    assert not any(output.iterdir())


def stored(**settings):
    """A film that is stored and can be watched, and our node, which takes it from the store."""
    prompt = filmed(**settings)
    prompt["30"] = graphs.node(
        "SkyReelsV2Store", name="train", save_every=60.0, start_afresh=False, watch=True
    )
    prompt["6"]["inputs"]["store"] = ["30", 0]
    alone = {name: prompt[name] for name in ("3", "8", "30")}
    inputs = {name: one for name, one in prompt["8"]["inputs"].items() if name != "samples"}
    alone["8"] = {**prompt["8"], "inputs": {**inputs, "store": ["30", 0]}}
    return prompt, alone


def test_a_watched_film_is_joined_of_its_windows_and_read_from_its_store(look, output, packets):
    prompt, alone = stored(codec="h264")
    frames, file, report = look(prompt, frames=["7", 0], file=["8", 1], report=["8", 2])
    assert report.endswith(", 2 parts joined")
    assert np.abs(levels(file) - frames.numpy() * 255).mean() < 8
    parts = (output / "skyreels_v2_films" / "train" / "video" / "film.m3u").read_text().split()[1:]
    wanted = [packets(output / "skyreels_v2_films" / "train" / "video" / part) for part in parts]
    assert packets(file) == wanted[0] + wanted[1]
    again, report = look(alone, file=["8", 1], report=["8", 2])
    assert packets(again) == packets(file) and report.endswith(", 2 parts joined")
    _, lossless = stored()
    (other,) = look(lossless, file=["8", 1])
    assert np.array_equal(levels(other), (frames * 255).round().to(torch.uint8).numpy())


@pytest.mark.parametrize("windows", [17, 25])
def test_latents_that_other_nodes_have_changed_are_not_those_on_the_disk(
    look, output, part, windows
):
    prompt, _ = stored(codec="h264")
    prompt["5"]["inputs"]["window"] = windows
    prompt["40"] = graphs.node("SkyReelsV2ColorAnchor", samples=["6", 0], strength=0.5)
    prompt["40"]["inputs"]["reference"] = ["6", 0]
    latent, anchored, vae = look(prompt, latent=["6", 0], anchored=["40", 0], vae=["3", 0])
    open_film = part("film.decoding").open_film
    assert open_film(vae, latent).stored.count == (2 if windows == 17 else 1)
    changed = {**latent, "samples": latent["samples"] * 0.5}
    assert open_film(vae, changed).stored is None
    assert open_film(vae, anchored).stored is None


def test_samples_or_a_store_is_needed(run_prompt, output):
    prompt, alone = stored()
    assert "'train', which is not on the disk" in run_prompt(alone).describe()
    prompt["8"]["inputs"]["store"] = ["30", 0]
    assert "samples and store: both is connected" in run_prompt(prompt).describe()


def test_a_clip_in_a_file_is_extended_as_its_frames_are(look, output, save, film, give):
    """At another frame rate, and with the clip before the film in its file."""
    from comfy_api.latest import InputImpl

    clip = save(film(30), codec="ffv1", fps=18.0).video
    give("clip", clip)
    assert isinstance(clip, InputImpl.VideoFromFile)
    components = clip.get_components()
    give("frames", levels_tensor(clip))
    give("rate", 18.0)
    assert len(components.images) == 30

    def extend(name, value):
        prompt = filmed()
        prompt["9"] = graphs.node("SkyReelsV2TestGiver", name=value)
        prompt["10"] = graphs.node("SkyReelsV2Frames", schedule=["5", 0], **{name: ["9", 0]})
        if name == "video":
            prompt["11"] = graphs.node("SkyReelsV2TestGiver", name="rate")
            prompt["10"]["inputs"]["clip_fps"] = ["11", 0]
        prompt["6"]["inputs"]["frames"] = ["10", 0]
        return look(prompt, frames=["7", 0], file=["8", 1], summary=["10", 3], told=["8", 2])

    frames, file, summary, told = extend("video_file", "clip")
    wanted, *_ = extend("video", "frames")
    assert torch.equal(frames, wanted) and len(frames) == 20 + 25 - 9
    assert np.array_equal(levels(file), (wanted * 255).round().to(torch.uint8).numpy())
    assert told.endswith(
        ", video_file coded again (some of its frames are left out or shown twice)"
    )
    assert summary.endswith(
        "video_file: 30 frames at 18 a second, taken as 20 at the schedule's 12"
    )


def loudness(path):
    """Of each tenth of a second, of the first channel."""
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    tenths = heard[: len(heard) // (rate // 10) * (rate // 10)].reshape(-1, rate // 10)
    return np.sqrt((tenths**2).mean(1))


@pytest.mark.parametrize("name", ["video_file", "prepend_to_file"])
def test_a_clip_in_a_file_is_copied_with_its_sound(look, output, save, film, give, packets, name):
    tone = torch.sin(torch.arange(48000 * 3) * 0.05).expand(1, 1, -1)
    sound = {"waveform": tone, "sample_rate": 48000}
    clip = save(film(30, side=32), codec="h264", fps=12.0, audio=sound)
    give("clip", clip.video)
    prompt = filmed(codec="h264")
    prompt["9"] = graphs.node("SkyReelsV2TestGiver", name="clip")
    prompt["10"] = graphs.node("SkyReelsV2Frames", schedule=["5", 0], **{name: ["9", 0]})
    prompt["6"]["inputs"]["frames"] = ["10", 0]
    frames, file, report = look(prompt, frames=["7", 0], file=["8", 1], report=["8", 2])
    assert report.endswith(f", {name} copied without coding it again")
    whole, copied = packets(file), packets(clip.path)
    assert len(whole) == len(frames) and (whole[:30] if name == "video_file" else whole[-30:]) == (
        copied
    )
    assert np.abs(levels(file) - frames.numpy() * 255).mean() < 12
    heard = loudness(file)
    assert abs(len(heard) / 10 - len(frames) / 12) < 0.2
    if name == "prepend_to_file":
        heard = heard[::-1]
    # The clip's 2.5 s sound, and nothing after or before them.
    assert (heard[3:22] > 0.6).all() and (heard[28:] < 0.01).all()


def levels_tensor(video):
    return torch.from_numpy(levels(video.get_stream_source())).float() / 255


def test_a_video_in_memory_is_brought_to_the_frame_rate(part):
    from fractions import Fraction

    from comfy_api.latest import InputImpl, Types

    images = torch.arange(30).reshape(-1, 1, 1, 1).expand(-1, 16, 16, 3) / 30
    components = Types.VideoComponents(images=images, frame_rate=Fraction(30))
    video = InputImpl.VideoFromComponents(components)
    plan = part("film.clips").FilmPlan(num_frames=17, width=16, height=16, window=17, overlap=9)
    clip = part("film.clips").open_clip("video_file", {"video_file": video}, plan, "crop")
    assert len(clip) == 24 and clip.cut(1, 2)[0, 0, 0, 0] == pytest.approx(1 / 30)
