"""Which scenes are trained on, and how often."""

from __future__ import annotations

import numpy as np

from toy.world import TRAINED, Scene

# Bars and shaded backgrounds are learned last, and fail first: they are drawn twice as often.
HARD = tuple(scene for scene in TRAINED if scene.shape == "bar" or scene.background == "shaded")
DRAWN = TRAINED + HARD


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene that is not held out."""
    return DRAWN[rng.integers(len(DRAWN))]
