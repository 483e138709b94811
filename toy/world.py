"""The toy world: one coloured shape moving over a background, on a torus.

A scene is a colour, a shape, a background and a direction, and its caption is one sentence. What
leaves the picture at one side enters at the other. Speed is per second, so that at 16 frames per
second a film shows larger steps than at 24. An eighth of the scenes is held out: no network of the
toy set ever sees them in training, and its scores are measured on them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

SIZE = 32  # px
RADIUS = 6.0  # px, of a circle
BAR = (7.0, 4.0)  # px, half of its width and height: it covers as much as the circle
PX_PER_SECOND = 18.0
FPS = 24

# RGB in 0..1, as the trained set shows them.
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.08, 0.67, 0.16),
    "blue": (0.12, 0.20, 0.90),
    "yellow": (0.98, 0.86, 0.08),
}
SHAPES = ("circle", "bar")
# Greys of the top and of the bottom row; the last one is graded between them.
BACKGROUNDS = {
    "black": (0.05, 0.05),
    "white": (0.95, 0.95),
    "grey": (0.5, 0.5),
    "shaded": (0.15, 0.85),
}
# (x, y) of a step, y downwards.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}

_CAPTION = re.compile(r"a (\w+) (\w+) moving (\w+) on a (\w+) background")


@dataclass(frozen=True)
class Scene:
    """What a caption says. The names are not checked here: instruments report "none" in them."""

    colour: str
    shape: str
    background: str
    direction: str

    @property
    def caption(self) -> str:
        """The sentence that the toy set was trained with."""
        return (
            f"a {self.colour} {self.shape} moving {self.direction} on a {self.background} "
            f"background"
        )

    @property
    def colourless(self) -> str:
        """A sentence of the same words that tells neither colour nor background."""
        return f"a {self.shape} moving {self.direction}"

    @property
    def held_out(self) -> bool:
        """One of the 16 scenes never trained on; each name of the world occurs evenly in them."""
        colour, shape = list(COLOURS).index(self.colour), SHAPES.index(self.shape)
        background = list(BACKGROUNDS).index(self.background)
        direction = list(DIRECTIONS).index(self.direction)
        even = (colour + background + shape) % 2 == 0
        return even and direction == (background + 2 * shape + colour) % len(DIRECTIONS)


SCENES = tuple(
    Scene(*names) for names in itertools.product(COLOURS, SHAPES, BACKGROUNDS, DIRECTIONS)
)
HELD_OUT = tuple(scene for scene in SCENES if scene.held_out)
TRAINED = tuple(scene for scene in SCENES if not scene.held_out)


def parse_caption(caption: str) -> Scene:
    """The scene a prompt asks for; ValueError for a prompt that is not of this world."""
    found = _CAPTION.search(caption)
    if found:
        scene = Scene(found[1], found[2], found[4], found[3])
        if scene in SCENES:
            return scene
    raise ValueError(
        f"caption is {caption!r}; the toy world knows 'a <{'|'.join(COLOURS)}> "
        f"<{'|'.join(SHAPES)}> moving <{'|'.join(DIRECTIONS)}> on a <{'|'.join(BACKGROUNDS)}> "
        f"background'"
    )


def step_length(fps: float = FPS) -> float:
    """How far the shape moves from frame to frame, px."""
    return PX_PER_SECOND / fps


def path(directions: list[str], start: tuple[float, float], fps: float = FPS) -> np.ndarray:
    """Centres (T, 2) as (x, y) in px: `start`, then a step in each of the T - 1 directions.

    Raises ValueError for a direction that the world does not have.
    """
    for name in dict.fromkeys(directions):
        _require("direction", name, DIRECTIONS)
    steps = [(0, 0), *(DIRECTIONS[name] for name in directions)]
    return np.asarray(start) + step_length(fps) * np.cumsum(steps, axis=0)


def render(
    scene: Scene,
    frames: int,
    start: tuple[float, float] = (16.0, 16.0),
    fps: float = FPS,
    size: int = SIZE,
) -> np.ndarray:
    """Ground truth: (T, size, size, 3) float32 in 0..1, edges antialiased.

    `start` is the centre (x, y) in the first frame. Raises ValueError for names that the world
    does not have.
    """
    return paint(scene, path([scene.direction] * (frames - 1), start, fps), size)


def paint(scene: Scene, centres: np.ndarray, size: int = SIZE) -> np.ndarray:
    """The scene's shape at each of the centres (T, 2): (T, size, size, 3) float32 in 0..1."""
    _require("colour", scene.colour, COLOURS)
    cover = coverage(scene.shape, centres, size)[..., None]  # (T, H, W, 1)
    ground = background(scene.background, size)[:, None]  # (H, 1, 3)
    return (ground + cover * (np.asarray(COLOURS[scene.colour]) - ground)).astype(np.float32)


def coverage(shape: str, centres: np.ndarray, size: int = SIZE) -> np.ndarray:
    """How much of each pixel the shape covers, (T, size, size) in 0..1, centres (T, 2)."""
    _require("shape", shape, SHAPES)
    cells = np.arange(size) + 0.5
    # Offset from the nearest copy of the shape.
    offset = (cells - centres[:, :, None] + size / 2) % size - size / 2  # (T, 2, size)
    x, y = offset[:, 0, None, :], offset[:, 1, :, None]
    if shape == "circle":
        return np.clip(RADIUS + 0.5 - np.hypot(x, y), 0, 1)
    wide, high = (
        np.clip(half + 0.5 - np.abs(o), 0, 1) for half, o in zip(BAR, (x, y), strict=True)
    )
    return wide * high


def background(name: str, size: int = SIZE) -> np.ndarray:
    """Colour of each row, (size, 3) in 0..1."""
    _require("background", name, BACKGROUNDS)
    return np.linspace(*BACKGROUNDS[name], size)[:, None].repeat(3, axis=1)


def _require(name: str, value: str, legal: Collection[str]) -> None:
    if value not in legal:
        raise ValueError(f"{name} is {value!r}; the toy world has {', '.join(legal)}")
