"""Clips that come as the host's VIDEO: files stay where they are, frame rates become the plan's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from comfy_api.latest import InputImpl

from ....skyreels_model.framing import ClipFrames, FramedFilm
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.video.reader import FileFilm
from .images import open_images


def open_clip(name: str, given: Mapping[str, Any], plan: FilmPlan, fit: str) -> ClipFrames | None:
    """The clip of an input at the plan's size and frame rate; None where nothing is connected.

    Raises ValueError, which names the input, for what is no video.
    """
    video = given.get(name)
    if video is None:
        return None
    if isinstance(video, InputImpl.VideoFromFile):
        # Older hosts cut no parts out of a file.
        window = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
        clip = FileFilm(
            name, video.get_stream_source(), plan.fps, plan.width, plan.height, fit, *window
        )
        len(clip)  # reads when its frames are shown, or says what is wrong
        return clip
    components = video.get_components()
    images = open_images(name, components.images)
    rate = float(components.frame_rate)
    count = max(1, round(len(images) / rate * plan.fps))
    # The frame that is shown in the middle of each one's time.
    places = ((torch.arange(count) + 0.5) / plan.fps * rate).long().clamp(max=len(images) - 1)
    return FramedFilm(images[places], plan.width, plan.height, fit)
