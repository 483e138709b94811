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
        "memory suffices for them, else the fewest tiles that fit. Otherwise a multiple of 32 from "
        "64 on. Tiles overlap, which costs time (256 at 832 x 480: twice as much), and the result "
        "differs a little from the untiled one.",
    )
