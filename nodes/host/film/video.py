"""A film to a file in the host: its name, its workflow, its sound, and the VIDEO that it is."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import InputImpl, Types

from ....skyreels_model.rules import refusal, require_number
from ....skyreels_model.video.codecs import VideoSettings
from ....skyreels_model.video.pictures import PATTERN, join_pictures, open_writer
from ....skyreels_model.video.segments import JoinedWriter
from ....skyreels_model.video.sound import AnySound, Sound
from ....skyreels_model.video.splicing import why_coded, write_spliced
from ....skyreels_model.video.unfinished import sweep
from ....skyreels_model.video.writer import exact_rate
from ..notice import warn
from .decoding import FilmFrames
from .store import find_segments

FPS = 24  # what the models were trained at
BOUNDS = {"fps": (0.0, 240.0)}
MB = 10**6
LONGEST_NAME = 200  # bytes; file systems take 255, and a number and an ending follow
LONGEST_RATE = 10**6  # samples of sound a second


@dataclass(frozen=True)
class SavedFilm:
    """A film's file: its VIDEO, where it lies, how the page shows it, and what is told of it."""

    video: InputImpl.VideoFromFile
    path: Path
    shown: dict[str, Any]
    report: str


def save_film(
    film: FilmFrames,
    vae: comfy.sd.VAE,
    settings: VideoSettings,
    prefix: str,
    fps: float,
    audio: Mapping[str, Any] | None,
    metadata: dict[str, str],
) -> SavedFilm:
    """Decode a film into a file of the host's output folder, a few frames at a time.

    Where a store has all parts of it as videos already, coded so, these are joined instead.
    fps: 0 is the film's own. Raises ValueError for input that is not legal, before work begins.
    """
    require_number("fps", fps, *BOUNDS["fps"])
    settings.require_size(film.width, film.height)
    rate = exact_rate(fps or film.fps or FPS)
    sound: AnySound | None = open_sound(audio) if audio is not None else None
    folder, name = choose_name(prefix, film.width, film.height)
    for left in sweep(folder):
        warn(f"{left.name} was left by a run that was ended in the middle of it, and is removed")
    kind = settings.kind.file
    path = folder / (name if kind == "png" else f"{name}.{kind}")
    if sound is None and rate == film.fps:
        sound = film.sound()
    parts = find_segments(film.stored, settings, rate, vae) if film.stored else []
    if parts:
        with JoinedWriter(path, settings, rate, metadata, sound) as joined:
            for part in parts:
                comfy.model_management.throw_exception_if_processing_interrupted()
                joined.append(part)
        told = [f"{len(parts)} parts joined"]
    else:
        told = _write_frames(path, film, settings, rate, metadata, sound)
    saved = describe_saved(path, settings, rate, film.count, (film.width, film.height))
    return replace(saved, report=", ".join([saved.report, *told]))


def _write_frames(
    path: Path,
    film: FilmFrames,
    settings: VideoSettings,
    rate: Fraction,
    metadata: Mapping[str, str],
    sound: AnySound | None,
) -> list[str]:
    """Decode a film into a file; what became of clips in files beside it, for people.

    A clip that is coded as the film will be is copied.
    """
    clips = [clip for clip in (film.before, film.after) if clip]
    reasons = {clip.name: why_coded(clip, settings, rate) for clip in clips}
    copied = [clip for clip in clips if not reasons[clip.name]]
    if copied:
        ends = [clip.source if clip in copied else None for clip in (film.before, film.after)]
        pieces = film.pieces(*copied)
        write_spliced(path, settings, rate, metadata, sound, ends[0], pieces, ends[1])
    else:
        with open_writer(path, settings, rate, metadata, sound) as writer:
            for piece in film.pieces():
                writer.write(piece)
    return [
        f"{name} coded again ({why})" if why else f"{name} copied without coding it again"
        for name, why in reasons.items()
    ]


def describe_saved(
    path: Path, settings: VideoSettings, rate: Fraction, frames: int, size: tuple[int, int]
) -> SavedFilm:
    """What a node gives of a film's file."""
    pictures = settings.kind.file == "png"
    video = PictureVideo(path, rate, frames) if pictures else InputImpl.VideoFromFile(str(path))
    first = path / (PATTERN % 0) if pictures else path
    below = os.path.relpath(first.parent, folder_paths.get_output_directory())
    place = {"filename": first.name, "subfolder": "" if below == "." else below, "type": "output"}
    shown = {"images": [place], **({} if pictures else {"animated": (True,)})}
    files = path.iterdir() if pictures else [path]
    size_of_file = sum(file.stat().st_size for file in files) / MB
    name = path.relative_to(folder_paths.get_output_directory()).as_posix()
    report = (
        f"{name}: {frames} frames of {size[0]} x {size[1]} px, {float(rate):.6g} a second, "
        f"{float(frames / rate):.2f} s, {settings.codec}, {size_of_file:.3g} MB"
    )
    return SavedFilm(video, path, shown, report)


def choose_name(prefix: str, width: int, height: int) -> tuple[Path, str]:
    """The folder, made where it is not there, and the next free name, as core's Save Video."""
    output = folder_paths.get_output_directory()
    # The host says so, too, but not which input it is.
    place = os.path.abspath(os.path.join(output, os.path.dirname(prefix)))
    inside = os.path.commonpath([os.path.abspath(output), place]) == os.path.abspath(output)
    if not os.path.basename(prefix).strip(". ") or not inside or "\0" in prefix:
        rule = "a name, with or without folders of ComfyUI's output folder before it"
        raise refusal("filename_prefix", prefix, rule, "video/SkyReels-V2")
    for part in prefix.replace("\\", "/").split("/"):
        length = len(part.encode("utf-8", "surrogatepass"))
        if length > LONGEST_NAME:
            raise ValueError(
                f"filename_prefix has a name of {length} bytes, {part[:20]}…; it must be "
                f"{LONGEST_NAME} at most, the file's and each folder's"
            )
    folder, name, counter, _, _ = folder_paths.get_save_image_path(prefix, output, width, height)
    return Path(folder), f"{name}_{counter:05}_"


def workflow_metadata(hidden: Any) -> dict[str, str]:
    """The workflow as core's Save Video writes it; nothing where the host was told to write none.

    hidden: a node's hidden inputs.
    """
    if hidden is None or comfy.cli_args.args.disable_metadata:
        return {}
    found = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        found["prompt"] = hidden.prompt
    return {name: json.dumps(value) for name, value in found.items()}


def open_sound(audio: Mapping[str, Any]) -> Sound:
    """The first of an AUDIO's batch. Raises ValueError for what is no sound."""
    wave, rate = audio.get("waveform"), audio.get("sample_rate")
    right = isinstance(wave, torch.Tensor) and wave.ndim == 3 and len(wave) and wave.shape[2]
    if not right or not wave.is_floating_point() or not bool(wave.isfinite().all()):
        raise ValueError(
            "audio has no waveform that can be heard; it must be AUDIO (batch, channels, samples) "
            "of finite numbers, as of Load Audio"
        )
    if (
        not isinstance(rate, (int, float))
        or not math.isfinite(rate)
        or not 1 <= rate < LONGEST_RATE
    ):
        raise refusal("audio", rate, "a sound with 1 to 1000000 samples a second", 48000)
    return Sound(wave[0].detach(), round(rate))


class PictureVideo(InputImpl.VideoFromFile):
    """The host's VIDEO of a folder of pictures, whose frame rate no file says."""

    def __init__(self, folder: Path, rate: Fraction, frames: int) -> None:
        super().__init__(str(folder / PATTERN))
        self.folder, self.rate, self.frames = folder, rate, frames

    def get_components(self) -> Types.VideoComponents:
        return replace(super().get_components(), frame_rate=self.rate)

    def get_frame_rate(self) -> Fraction:
        return self.rate

    def get_frame_count(self) -> int:
        return self.frames

    def get_duration(self) -> float:
        return float(self.frames / self.rate)

    def save_to(self, path: Any, **options: Any) -> None:
        """By way of a file with the pictures as they are, which the host then copies."""
        folder = Path(folder_paths.get_temp_directory())
        folder.mkdir(parents=True, exist_ok=True)
        joined = folder / f"{self.folder.name}.{os.getpid()}.mp4"
        try:
            join_pictures(self.folder, joined, self.rate)
            InputImpl.VideoFromFile(str(joined)).save_to(path, **options)
        finally:
            joined.unlink(missing_ok=True)
