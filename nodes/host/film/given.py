"""Images and films that are given to a film: checked, counted, encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....skyreels_model.framing import ClipFrames, FramedFilm
from ....skyreels_model.grid import frame_length
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.plan.given import Given, too_near
from ....skyreels_model.rollout.conditions import Conditions
from ....skyreels_model.video.reader import FileFilm
from .clips import CLIPS, bring_to_rate, open_clip
from .images import open_images


@dataclass(frozen=True)
class FilmImages:
    """Images (H, W, 3) in 0..1 of a film's size, and films of any.

    size: (width, height) of the film. video: one to extend. following: one to lead into. source:
    one to regenerate.
    """

    size: tuple[int, int]
    start: Tensor | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)  # by frame
    end: Tensor | None = None
    video: ClipFrames | None = None
    source: ClipFrames | None = None
    following: ClipFrames | None = None

    @property
    def counts(self) -> Given:
        """How much is given, for the film's plan."""
        return Given(
            start=int(self.start is not None),
            video=len(self.video or ()),
            key_frames=tuple(self.keys),
            end=self.end is not None,
            following_frames=len(self.following or ()),
            source=len(self.source or ()),
        )

    def encode(self, plan: FilmPlan, encode: Callable[[Tensor], Tensor]) -> Conditions:
        """As latents; `encode` takes frames (T, H, W, 3) in 0..1."""
        first = self.start[None] if self.start is not None else None
        if self.video is not None:
            first = self.video.cut(len(self.video) - plan.overlap)
        keys = plan.key_latents(tuple(self.keys))
        following = None
        if self.following is not None:
            begin, stop = plan.following_start, frame_length(plan.following + 1)
            # The first of them is the picture with which the film's last latent ends.
            following = encode(self.following.cut(begin, begin + stop))[:, :, 1:]
        return Conditions(
            start=None if first is None else encode(first),
            pictures={latent: encode(self.keys[frame][None]) for latent, frame in keys.items()},
            end=None if self.end is None else encode(self.end[None]),
            source=None if self.source is None else self._encode_source(plan, encode),
            following=following,
        )

    def _encode_source(self, plan: FilmPlan, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """The source as latents, each sequence of the film on its own."""
        assert self.source is not None
        parts = [
            encode(self.source.cut(run.frame, run.frame + run.frames)) for run in plan.layout.runs()
        ]
        return torch.cat(parts, dim=2)

    def describe(self) -> str:
        """What becomes of the frame rates of clips in files; a line for each."""
        files = [clip for clip in (self.video, self.following) if isinstance(clip, FileFilm)]
        return "".join(f"\n{clip.describe()}" for clip in files)

    @property
    def preview(self) -> Tensor:
        """All images in the order of the film, (N, H, W, 3). A film to extend shows its last
        frame, one to regenerate or to lead into its first."""
        video = [] if self.video is None else [self.video.cut(len(self.video) - 1)[0]]
        source = [] if self.source is None else [self.source.cut(0, 1)[0]]
        first = [] if self.start is None else [self.start]
        keys = [self.keys[frame] for frame in sorted(self.keys)]
        last = [] if self.end is None else [self.end]
        following = [] if self.following is None else [self.following.cut(0, 1)[0]]
        return torch.stack([*video, *source, *first, *keys, *last, *following])


def collect_images(
    plan: FilmPlan,
    given: Mapping[str, Any],
    key_seconds: str,
    fit: str,
    loop: bool,
    clip_fps: float | None = None,
) -> FilmImages:
    """All images with the plan's size; raises ValueError where they contradict each other.

    given: images (N, H, W, C) by input: start_image, end_image, key_images, video, source,
    prepend_to; videos of the host: video_file, prepend_to_file. clip_fps: the frame rate of the
    last three that are images, None for the plan's.
    """
    require_agreement(given, loop)

    def frame_film(name: str, count: int | None = None) -> FramedFilm | None:
        images = given.get(name)
        if images is None:
            return None
        film = FramedFilm(open_images(name, images, count), plan.width, plan.height, fit)
        if clip_fps is None or name not in CLIPS:
            return film
        return bring_to_rate(name, film, clip_fps, plan.fps)

    start, end = frame_film("start_image", 1), frame_film("end_image", 1)
    if loop:
        end = start
    return FilmImages(
        size=(plan.width, plan.height),
        start=None if start is None else start.cut()[0],
        keys=_time_keys(plan, frame_film("key_images"), key_seconds),
        end=None if end is None else end.cut()[0],
        video=frame_film("video") or open_clip("video_file", given, plan, fit),
        source=frame_film("source"),
        following=frame_film("prepend_to") or open_clip("prepend_to_file", given, plan, fit),
    )


# Inputs that exclude each other, and why.
EXCLUSIVE = (
    ("start_image", "video", "a film begins with one or the other"),
    ("video", "source", "a film extends one, or is made from the other"),
    ("end_image", "prepend_to", "a film ends with one or the other"),
    ("source", "prepend_to", "a film is made from one, or leads into the other"),
    ("video", "video_file", "a film extends one or the other"),
    ("start_image", "video_file", "a film begins with one or the other"),
    ("video_file", "source", "a film extends one, or is made from the other"),
    ("prepend_to", "prepend_to_file", "a film leads into one or the other"),
    ("end_image", "prepend_to_file", "a film ends with one or the other"),
    ("source", "prepend_to_file", "a film is made from one, or leads into the other"),
)


def require_agreement(given: Mapping[str, Any], loop: bool) -> None:
    """Raise ValueError where inputs contradict each other; None is one that is not connected."""
    connected = {name for name, images in given.items() if images is not None}
    for one, other, why in EXCLUSIVE:
        if {one, other} <= connected:
            raise ValueError(f"{one} and {other} are both connected; {why}: disconnect one")
    ends = [name for name in ("end_image", "prepend_to", "prepend_to_file") if name in connected]
    if loop and ends:
        what = ends[0]
        raise ValueError(
            f"loop is on and {what} is connected; a loop ends where it begins: disconnect "
            f"{what}, or turn loop off"
        )
    if loop and "start_image" not in connected:
        raise ValueError("loop is on without a start_image; connect the image to come back to")
    if not connected:
        raise ValueError("nothing is connected; connect a start, end or key image, or a video")


def _time_keys(plan: FilmPlan, images: FramedFilm | None, seconds: str) -> dict[int, Tensor]:
    """Key images by the frame they are for."""
    frames = parse_key_seconds(seconds, plan.fps)
    count = len(images or ())
    if len(frames) != count:
        raise ValueError(
            f"key_seconds has {len(frames)} times and key_images {count} images; it must have one "
            f"for each image, such as '2, 4.5' for two"
        )
    return dict(zip(frames, () if images is None else images.cut(), strict=True))


def parse_key_seconds(seconds: str, fps: int) -> list[int]:
    """The frames of key images; raises ValueError for no number, and for a frame named twice."""
    try:
        times = [float(part) for part in seconds.replace(",", " ").split()]
    except ValueError:
        times = [math.nan]
    if not all(map(math.isfinite, times)):
        raise ValueError(
            f"key_seconds is {seconds!r}; it must be numbers with commas between, such as '2, 4.5'"
        )
    frames = [round(time * fps) for time in times]
    for number, frame in enumerate(frames):
        if frame in frames[:number]:
            raise too_near(frame, frame, fps)
    return frames
