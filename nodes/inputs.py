"""Socket types and inputs that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

Frames = io.Custom("SKYREELS_V2_FRAMES")
CATEGORY = "SkyReels-V2/loaders"
Schedule = io.Custom("SKYREELS_V2_SCHEDULE")
Storyboard = io.Custom("SKYREELS_V2_STORYBOARD")
Store = io.Custom("SKYREELS_V2_STORE")
Words = io.Custom("SKYREELS_V2_WORDS")  # a skyreels_model.words.Engine


def engine_input(tooltip: str) -> io.Input:
    """A socket for whatever writes words; `as_engine` of nodes/host/words makes it an engine."""
    return io.MultiType.Input("engine", types=[Words, io.Clip], tooltip=tooltip)
