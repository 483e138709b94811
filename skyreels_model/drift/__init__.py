"""Colours that wander from window to window: measured, and held."""

from .colours import anchored, moved, pooled, statistics, transport
from .meter import Drift, describe, draw, measure

__all__ = [
    "Drift",
    "anchored",
    "describe",
    "draw",
    "measure",
    "moved",
    "pooled",
    "statistics",
    "transport",
]
