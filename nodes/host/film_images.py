"""Pictures and films that are given to a film: fitted to its size, checked, encoded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...skyreels_model.conditions import Conditions
from ...skyreels_model.image_prep import fit_image
from ...skyreels_model.plan import FilmPlan
from ...skyreels_model.shots import frame_length, latent_length


@dataclass(frozen=True)
class FilmImages:
    """Pictures (H, W, 3) in 0..1 of a film's size, a film (T, H, W, 3) to go on from, and one to
    make anew."""

    start: Tensor | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)  # by frame
    end: Tensor | None = None
    video: Tensor | None = None
    source: Tensor | None = None

    def plan(self, plan: FilmPlan) -> FilmPlan:
        """The plan with places for the pictures; raises ValueError where there is none."""
        if self.source is not None and len(self.source) < plan.num_frames:
            raise ValueError(
                f"source has {len(self.source)} frames and the film {plan.num_frames}; give a "
                f"longer source, or make a film of at most {len(self.source)} frames"
            )
        return Conditions(
            start=self._placeholder(plan),
            pictures=dict.fromkeys(_frames_by_latent(plan, list(self.keys)), torch.empty(0)),
            end=self.end,
            source=self.source,
        ).fit(plan)

    def _placeholder(self, plan: FilmPlan) -> Tensor | None:
        """Something as long as the latents given at the start."""
        count = latent_length(plan.overlap) if self.video is not None else 1
        none = self.video is None and self.start is None
        return None if none else torch.empty(1, 0, count, 0, 0)

    def encoded(self, plan: FilmPlan, encode: Callable[[Tensor], Tensor]) -> Conditions:
        """As latents; `encode` takes frames (T, H, W, 3) in 0..1."""
        first = self.start[None] if self.start is not None else None
        keys = _frames_by_latent(plan, list(self.keys))
        if self.video is not None:
            first = self.video[-plan.overlap :]
        return Conditions(
            start=None if first is None else encode(first),
            pictures={latent: encode(self.keys[frame][None]) for latent, frame in keys.items()},
            end=None if self.end is None else encode(self.end[None]),
            source=None if self.source is None else self._encoded_source(plan, encode),
        )

    def _encoded_source(self, plan: FilmPlan, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """The source as latents, each sequence by itself, its last latent filled with its frame."""
        assert self.source is not None
        parts = []
        for _, begin, latents, frames in plan.sequences:
            part = self.source[begin : begin + frames]
            lacking = frame_length(latents) - frames
            parts.append(encode(torch.cat([part, part[-1:].repeat(lacking, 1, 1, 1)])))
        return torch.cat(parts, dim=2)

    @property
    def shown(self) -> Tensor:
        """All pictures in the order of the film, (N, H, W, 3); of a film to go on from its last
        frame, of one to make anew its first."""
        video = [] if self.video is None else [self.video[-1]]
        keys = [self.keys[frame] for frame in sorted(self.keys)]
        first = [] if self.start is None else [self.start]
        last = [] if self.end is None else [self.end]
        source = [] if self.source is None else [self.source[0]]
        return torch.stack([*video, *source, *first, *keys, *last])


def collect_images(
    plan: FilmPlan,
    start_image: Tensor | None,
    end_image: Tensor | None,
    key_images: Tensor | None,
    key_seconds: str,
    video: Tensor | None,
    fit: str,
    loop: bool,
    source: Tensor | None,
) -> FilmImages:
    """Fit all pictures to the plan's size; raises ValueError where they contradict each other."""
    if start_image is not None and video is not None:
        raise ValueError(
            "start_image and video are both connected; a film begins with one or the other: "
            "disconnect one"
        )
    if loop and end_image is not None:
        raise ValueError("loop is on and end_image is connected; a loop ends where it begins")
    if loop and start_image is None:
        raise ValueError("loop is on without a start_image; connect the picture to come back to")
    if video is not None and source is not None:
        raise ValueError(
            "video and source are both connected; a film goes on from one, or is made from the "
            "other: disconnect one"
        )
    if all(one is None for one in (start_image, end_image, key_images, video, source)):
        raise ValueError("nothing is connected; connect a start, end or key image, or a video")
    if video is not None and len(video) < plan.overlap:
        raise ValueError(
            f"video has {len(video)} frames; the film continues its last {plan.overlap} (the "
            f"schedule's overlap): give at least that many, or an overlap of at most "
            f"{max((len(video) - 1) // 4 * 4 + 1, 1)}"
        )

    def fitted(name: str, images: Tensor | None, count: int | None = 1) -> Tensor | None:
        if images is None:
            return None
        if count is not None and len(images) != count:
            raise ValueError(f"{name} is a batch of {len(images)} images; it must be {count}")
        shown = [fit_image(i[..., :3], plan.width, plan.height, fit, "bicubic") for i in images]
        return torch.stack(shown)

    start, end = fitted("start_image", start_image), fitted("end_image", end_image)
    images = FilmImages(
        start=None if start is None else start[0],
        keys=_timed_keys(plan, fitted("key_images", key_images, None), key_seconds),
        end=start[0] if loop and start is not None else None if end is None else end[0],
        video=fitted("video", video, None),
        source=fitted("source", source, None),
    )
    images.plan(plan)
    return images


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
    _frames_by_latent(plan, frames)
    return dict(zip(frames, () if images is None else images, strict=True))


def _frames_by_latent(plan: FilmPlan, frames: Sequence[int]) -> dict[int, int]:
    """The frames of key images by the latents they stand in; raises ValueError if two share one."""
    found: dict[int, int] = {}
    for frame in frames:
        latent = plan.latent_at(frame)
        if latent in found:
            raise ValueError(
                f"key_seconds are those of frames {found[latent]} and {frame}, which fall into the "
                f"same four; they must be at least 4 frames ({4 / plan.fps:.2f} s) apart, 6 at the "
                f"film's end"
            )
        found[latent] = frame
    return found
