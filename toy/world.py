"""The toy world itself: one disc on a plain background, moving on a torus."""

from __future__ import annotations

import itertools

import numpy as np

SIZE = 32
RADIUS = 6.0
SPEED = 0.75  # px per frame

# RGB in 0..1, as the trained set shows them.
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.08, 0.67, 0.16),
    "blue": (0.12, 0.20, 0.90),
    "yellow": (0.98, 0.86, 0.08),
}
BACKGROUNDS = {"black": (0.05,) * 3, "white": (0.95,) * 3, "grey": (0.5,) * 3}
# (x, y) of a frame, y downwards.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}


def caption(colour: str, background: str, direction: str) -> str:
    """The sentence that the toy set was trained with."""
    return f"a {colour} circle moving {direction} on a {background} background"


def captions() -> list[str]:
    """All 48 sentences of the world."""
    return [caption(*names) for names in itertools.product(COLOURS, BACKGROUNDS, DIRECTIONS)]


def render(
    colour: str,
    background: str,
    direction: str,
    frames: int,
    start: tuple[float, float] = (16.0, 16.0),
    speed: float = SPEED,
    size: int = SIZE,
    radius: float = RADIUS,
) -> np.ndarray:
    """Ground truth: (T, size, size, 3) float32 in 0..1, the edge antialiased.

    `start` is the centre (x, y) in the first frame; what leaves at one side enters at the other.
    Raises ValueError for names that the world does not have.
    """
    _require("colour", colour, COLOURS)
    _require("background", background, BACKGROUNDS)
    _require("direction", direction, DIRECTIONS)
    time = np.arange(frames)[:, None]
    centre = np.asarray(start) + time * speed * np.asarray(DIRECTIONS[direction])  # (T, 2)
    cells = np.arange(size) + 0.5
    # Offset from the nearest copy of the disc, (T, 2, size).
    offset = (cells - centre[:, :, None] + size / 2) % size - size / 2
    distance = np.hypot(offset[:, 0, None, :], offset[:, 1, :, None])  # (T, H, W)
    coverage = np.clip(radius + 0.5 - distance, 0, 1)[..., None]
    ground, disc = np.asarray(BACKGROUNDS[background]), np.asarray(COLOURS[colour])
    return (ground + coverage * (disc - ground)).astype(np.float32)


def _require(name: str, value: str, legal: dict[str, tuple]) -> None:
    if value not in legal:
        raise ValueError(f"{name} is {value!r}; the toy world has {', '.join(legal)}")
