"""Inputs that several nodes share."""

from __future__ import annotations

from comfy_api.latest import io


def tile_size_input() -> io.Input:
    return io.Int.Input(
        "tile_size",
        default=0,
        min=0,
        max=4096,
        step=32,
        optional=True,
        advanced=True,
        tooltip="Side of square tiles in pixels, for small cards. 0: whole pictures where the "
        "memory suffices, else the largest tiles that fit. Tiles overlap by a quarter, so they "
        "cost time (256 px at 832 x 480: half as much again), and the result differs slightly.",
    )
