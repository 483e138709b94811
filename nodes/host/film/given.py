"""Pictures and films that are given to a film: fitted to its size, checked, encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ....skyreels_model.framing import fit_image
from ....skyreels_model.grid import frame_length, latent_length
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.rollout.conditions import Conditions


@dataclass(frozen=True)
class FilmImages:
    """Pictures (H, W, 3) in 0..1 of a film's size, and films (T, H, W, 3).

    video: one to go on from. following: one to lead up to. source: one to make anew.
    """

    start: Tensor | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)  # by frame
    end: Tensor | None = None
    video: Tensor | None = None
    source: Tensor | None = None
    following: Tensor | None = None

    def plan(self, plan: FilmPlan) -> FilmPlan:
        """The plan with places for the pictures; raises ValueError where there is none."""
        if self.source is not None and len(self.source) < plan.num_frames:
            raise ValueError(
                f"source has {len(self.source)} frames and the film {plan.num_frames}; give a "
                f"longer source, or make a film of at most {len(self.source)} frames"
            )
        count = latent_length(plan.overlap) if self.video is not None else 1
        begun = self.video is not None or self.start is not None
        room = plan.room_behind(count if begun else 0)
        given = Conditions(
            start=_placeholder(count) if begun else None,
            end=self.end,
            source=self.source,
            following=None if self.following is None else _placeholder(room),
        )
        # Where the key images lie depends on what else is given.
        plan = given.fit(plan)
        self._require_frames(plan)
        keys = dict.fromkeys(_frames_by_latent(plan, list(self.keys)), _placeholder(1))
        return replace(given, pictures=keys).fit(plan)

    def _require_frames(self, plan: FilmPlan) -> None:
        """A film that follows must have the frames that are shown of it."""
        if self.following is None:
            return
        needed = plan.following_start + frame_length(plan.following + 1)
        if len(self.following) < needed:
            raise ValueError(
                f"prepend_to has {len(self.following)} frames; the film leads into its first "
                f"{needed}: give at least that many (the schedule's overlap decides how many, at "
                f"least 5)"
            )

    def encoded(self, plan: FilmPlan, encode: Callable[[Tensor], Tensor]) -> Conditions:
        """As latents; `encode` takes frames (T, H, W, 3) in 0..1."""
        first = self.start[None] if self.start is not None else None
        keys = _frames_by_latent(plan, list(self.keys))
        if self.video is not None:
            first = self.video[-plan.overlap :]
        following = None
        if self.following is not None:
            begin, count = plan.following_start, plan.following + 1
            # The first of them is that picture with which the film's last latent ends.
            following = encode(self.following[begin : begin + frame_length(count)])[:, :, 1:]
        return Conditions(
            start=None if first is None else encode(first),
            pictures={latent: encode(self.keys[frame][None]) for latent, frame in keys.items()},
            end=None if self.end is None else encode(self.end[None]),
            source=None if self.source is None else self._encoded_source(plan, encode),
            following=following,
        )

    def _encoded_source(self, plan: FilmPlan, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """The source as latents, each sequence by itself, its last latent filled with its frame."""
        assert self.source is not None
        parts = []
        for run in plan.layout.runs():
            part = self.source[run.frame : run.frame + run.frames]
            lacking = frame_length(run.latents) - run.frames
            parts.append(encode(torch.cat([part, part[-1:].repeat(lacking, 1, 1, 1)])))
        return torch.cat(parts, dim=2)

    @property
    def shown(self) -> Tensor:
        """All pictures in the order of the film, (N, H, W, 3); of a film to go on from its last
        frame, of one to make anew or to lead up to its first."""
        video = [] if self.video is None else [self.video[-1]]
        keys = [self.keys[frame] for frame in sorted(self.keys)]
        first = [] if self.start is None else [self.start]
        last = [] if self.end is None else [self.end]
        source = [] if self.source is None else [self.source[0]]
        following = [] if self.following is None else [self.following[0]]
        return torch.stack([*video, *source, *first, *keys, *last, *following])


def _placeholder(latents: int) -> Tensor:
    """Something as long as latents that are to be encoded."""
    return torch.empty(1, 0, latents, 0, 0)


def collect_images(
    plan: FilmPlan, given: Mapping[str, Tensor | None], key_seconds: str, fit: str, loop: bool
) -> FilmImages:
    """Fit all pictures to the plan's size; raises ValueError where they contradict each other.

    given: images (N, H, W, C) in 0..1 by input: start_image, end_image, key_images, video, source,
    prepend_to.
    """
    _require_agreement(plan, given, loop)

    def fitted(name: str, count: int | None = None) -> Tensor | None:
        images = given.get(name)
        if images is None:
            return None
        if count is not None and len(images) != count:
            raise ValueError(f"{name} is a batch of {len(images)} images; it must be {count}")
        if not len(images):
            raise ValueError(f"{name} is a batch without images; connect at least one")
        shown = [_colours(name, i, image) for i, image in enumerate(images, 1)]
        return torch.stack([fit_image(i, plan.width, plan.height, fit, "bicubic") for i in shown])

    start, end = fitted("start_image", 1), fitted("end_image", 1)
    images = FilmImages(
        start=None if start is None else start[0],
        keys=_timed_keys(plan, fitted("key_images"), key_seconds),
        end=start[0] if loop and start is not None else None if end is None else end[0],
        video=fitted("video"),
        source=fitted("source"),
        following=fitted("prepend_to"),
    )
    images.plan(plan)
    return images


def _colours(name: str, number: int, image: Tensor) -> Tensor:
    """An image (H, W, C) as (H, W, 3): without transparency, grey ones in three channels."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(
            f"{name} has numbers in image {number} that are infinite or not a number; the node "
            f"that makes it failed"
        )
    return image.expand(-1, -1, 3) if image.shape[-1] == 1 else image[..., :3]


# Inputs that exclude each other, and why.
EXCLUSIVE = (
    ("start_image", "video", "a film begins with one or the other"),
    ("video", "source", "a film extends one, or is made from the other"),
    ("end_image", "prepend_to", "a film ends with one or the other"),
    ("source", "prepend_to", "a film is made from one, or leads into the other"),
)


def _require_agreement(plan: FilmPlan, given: Mapping[str, Tensor | None], loop: bool) -> None:
    connected = {name for name, images in given.items() if images is not None}
    for one, other, why in EXCLUSIVE:
        if {one, other} <= connected:
            raise ValueError(f"{one} and {other} are both connected; {why}: disconnect one")
    if loop and connected & {"end_image", "prepend_to"}:
        what = "end_image" if "end_image" in connected else "prepend_to"
        raise ValueError(f"loop is on and {what} is connected; a loop ends where it begins")
    if loop and "start_image" not in connected:
        raise ValueError("loop is on without a start_image; connect the picture to come back to")
    if not connected:
        raise ValueError("nothing is connected; connect a start, end or key image, or a video")
    video = given.get("video")
    if video is not None and len(video) < plan.overlap:
        raise ValueError(
            f"video has {len(video)} frames; the film continues its last {plan.overlap} (the "
            f"schedule's overlap): give at least that many, or an overlap of at most "
            f"{max((len(video) - 1) // 4 * 4 + 1, 1)}"
        )


def _timed_keys(plan: FilmPlan, images: Tensor | None, seconds: str) -> dict[int, Tensor]:
    """Key images by the frame they are for."""
    try:
        times = [float(part) for part in seconds.replace(",", " ").split()]
    except ValueError:
        times = [math.nan]
    if not all(map(math.isfinite, times)):
        raise ValueError(
            f"key_seconds is {seconds!r}; it must be numbers with commas between, such as '2, 4.5'"
        )
    count = 0 if images is None else len(images)
    if len(times) != count:
        raise ValueError(f"key_seconds has {len(times)} times and key_images {count} images")
    frames = [round(time * plan.fps) for time in times]
    for number, frame in enumerate(frames):
        if frame in frames[:number]:
            raise ValueError(_too_near(plan, frame, frame))
    return dict(zip(frames, () if images is None else images, strict=True))


def _frames_by_latent(plan: FilmPlan, frames: Sequence[int]) -> dict[int, int]:
    """The frames of key images by the latents they stand in; raises ValueError if two share one."""
    found: dict[int, int] = {}
    for frame in frames:
        latent = plan.latent_at(frame)
        if latent in found:
            raise ValueError(_too_near(plan, found[latent], frame))
        found[latent] = frame
    return found


def _too_near(plan: FilmPlan, one: int, other: int) -> str:
    return (
        f"key_seconds are those of frames {one} and {other}, which fall into the same four; they "
        f"must be at least 4 frames ({4 / plan.fps:.2f} s) apart, 6 at the film's end"
    )
