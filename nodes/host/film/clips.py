"""Clips that come as the host's VIDEO: files stay where they are, frame rates become the plan's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import InputImpl

from ....skyreels_model.framing import ClipFrames, FramedFilm, resample
from ....skyreels_model.plan.film_plan import FilmPlan
from ....skyreels_model.video.reader import FileFilm
from ..notice import warn
from .images import open_images

# Inputs that are films as images, with a frame rate of their own; and those that are extended.
CLIPS = ("video", "source", "prepend_to")
EXTENDED = ("video", "video_file")


def open_clip(name: str, given: Mapping[str, Any], plan: FilmPlan, fit: str) -> ClipFrames | None:
    """The clip of an input at the plan's size and frame rate; None where nothing is connected.

    Raises ValueError, which names the input, for what is no video.
    """
    video = given.get(name)
    if video is None:
        return None
    # A class of its own may know what the file does not say, such as a frame rate.
    if type(video) is InputImpl.VideoFromFile:
        # Older hosts cut no parts out of a file.
        window = getattr(video, "get_active_trim_window", lambda: (0.0, 0.0))()
        clip = FileFilm(
            name,
            video.get_stream_source(),
            plan.fps,
            plan.width,
            plan.height,
            fit,
            *window,
            from_end=name in EXTENDED,
        )
        len(clip)  # reads when its frames are shown, or says what is wrong
        return clip
    components = video.get_components()
    images = open_images(name, components.images)
    film = FramedFilm(images, plan.width, plan.height, fit)
    return bring_to_rate(name, film, float(components.frame_rate), plan.fps)


def bring_to_rate(name: str, film: FramedFilm, rate: float, fps: int) -> FramedFilm:
    """A clip with so many frames a second as the film has: some left out, or shown again."""
    # A film to extend is continued from its last frame.
    places = resample(len(film), rate, fps, from_end=name in EXTENDED)
    if places == tuple(range(len(film))):
        return film
    warn(
        f"{name} has {rate:g} frames per second and the schedule {fps}: its {len(film)} frames "
        f"become {len(places)}, so that it keeps its speed."
    )
    return replace(film, places=places)
