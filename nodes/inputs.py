"""Socket types and inputs that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io

Frames = io.Custom("SKYREELS_V2_FRAMES")
CATEGORY = "SkyReels-V2/loaders"
Schedule = io.Custom("SKYREELS_V2_SCHEDULE")
Storyboard = io.Custom("SKYREELS_V2_STORYBOARD")
Store = io.Custom("SKYREELS_V2_STORE")
Words = io.Custom("SKYREELS_V2_WORDS")  # a skyreels_model.words.Engine
