"""Colours that wander from window to window: measured, and held."""

from .colours import anchor_colours, map_colours, pool_statistics, statistics, transport
from .meter import Drift, describe, draw, measure

# Their names until November 2026, for scripts that import them.
anchored, moved, pooled = anchor_colours, map_colours, pool_statistics

__all__ = [
    "Drift",
    "anchor_colours",
    "anchored",
    "describe",
    "draw",
    "map_colours",
    "measure",
    "moved",
    "pool_statistics",
    "pooled",
    "statistics",
    "transport",
]
