"""Which scenes are trained on, and how often."""

from __future__ import annotations

import numpy as np

from toy.world import TRAINED, Scene

# Bars and shaded backgrounds are learned last, and fail first: they are drawn twice as often, and
# bars on a shaded background three times.
BARS = tuple(scene for scene in TRAINED if scene.shape == "bar")
SHADED = tuple(scene for scene in TRAINED if scene.background == "shaded")
DRAWN = TRAINED + BARS + SHADED
LEAST_CONTRAST = 0.6  # of toned frames


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene that is not held out."""
    return DRAWN[rng.integers(len(DRAWN))]


def tone(rng: np.random.Generator, frames: np.ndarray) -> np.ndarray:
    """The frames at a random contrast, and at a random brightness that this leaves room for."""
    contrast = rng.uniform(LEAST_CONTRAST, 1)
    return (frames * contrast + rng.uniform(0, 1 - contrast)).astype(np.float32)
