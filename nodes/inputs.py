"""Socket types and inputs that several nodes share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

Frames = io.Custom("SKYREELS_V2_FRAMES")
CATEGORY = "SkyReels-V2/loaders"
WORDS = "SkyReels-V2/words"  # the category of nodes that write or read texts
Schedule = io.Custom("SKYREELS_V2_SCHEDULE")
Storyboard = io.Custom("SKYREELS_V2_STORYBOARD")
Store = io.Custom("SKYREELS_V2_STORE")
Words = io.Custom("SKYREELS_V2_WORDS")  # a skyreels_model.words.Engine
WRITERS: list[Any] = [Words, io.Clip]


def tile_size_input() -> io.Input:
    """How large the tiles of the VAE are, of the nodes that code or decode."""
    return io.Int.Input(
        "tile_size",
        default=0,
        min=0,
        max=4096,
        step=32,
        optional=True,
        advanced=True,
        tooltip="Tile size in pixels: 64 or more, in steps of 32. 0 (automatic): "
        "whole frames if they fit, otherwise as few tiles as possible.",
    )


def words_seed_input() -> io.Input:
    """What decides which of its words a language model takes."""
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="Another seed, another wording. The same seed and inputs give the same text.",
    )
