"""Colours that wander from window to window: measured, and held."""

from .colours import anchor_colours, map_colours, pool_statistics, statistics, transport
from .meter import Drift, describe, draw, measure

__all__ = [
    "Drift",
    "anchor_colours",
    "describe",
    "draw",
    "map_colours",
    "measure",
    "pool_statistics",
    "statistics",
    "transport",
]
