"""The loop that makes a film, and its state."""

from .film import Film, RowDone, Velocity, WindowDone
from .frames import film_frames
from .loop import denoise, finish_window, generate
from .noise import NoiseSource, SeededNoise, ShotNoise
from .window import denoise_window

__all__ = [
    "Film",
    "NoiseSource",
    "RowDone",
    "SeededNoise",
    "ShotNoise",
    "Velocity",
    "WindowDone",
    "denoise",
    "denoise_window",
    "film_frames",
    "finish_window",
    "generate",
]
