"""Which scenes are trained on, how often, and in which colours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from toy.world import SIZE, TRAINED, Scene, coverage, paint

# Bars and shaded backgrounds are learned last, and fail first, bars that move along themselves most
# of all: they are drawn twice as often, and those three times.
HARD = tuple(scene for scene in TRAINED if scene.shape == "bar" or scene.background == "shaded")
ALONG = tuple(s for s in TRAINED if s.shape == "bar" and s.direction in ("left", "right"))
DRAWN = TRAINED + HARD + ALONG
GRADED = 0.3  # of the backgrounds of any colours
LEAST_CONTRAST = 0.4  # between figure and background of any colours, largest channel

# Frames (T, SIZE, SIZE, 3) in 0..1 of a scene whose figure goes over centres (T, 2).
Painter = Callable[[np.random.Generator, Scene, np.ndarray], np.ndarray]


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene that is not held out."""
    return DRAWN[rng.integers(len(DRAWN))]


def as_named(_rng: np.random.Generator, scene: Scene, centres: np.ndarray) -> np.ndarray:
    """A `Painter` of the colours that a scene names."""
    return paint(scene, centres)


def any_colours(rng: np.random.Generator, scene: Scene, centres: np.ndarray) -> np.ndarray:
    """A `Painter` that takes but the shape from a scene; colours are even over RGB."""
    while True:
        figure, top, bottom = rng.uniform(0, 1, (3, 3))
        if rng.random() > GRADED:
            bottom = top
        if min(np.abs(figure - end).max() for end in (top, bottom)) >= LEAST_CONTRAST:
            break
    ground = np.linspace(top, bottom, SIZE)[:, None]  # (H, 1, 3)
    cover = coverage(scene.shape, centres)[..., None]  # (T, H, W, 1)
    return (ground + cover * (figure - ground)).astype(np.float32)
