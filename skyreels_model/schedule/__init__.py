"""Noise levels: of a step, of every latent frame in every model call."""

from .flow import FlowSchedule, RowLevels, custom_schedule, flow_schedule, partial_schedule
from .matrix import TimestepMatrix, WindowRows, levels, timestep_matrix, window_matrix, window_rows

__all__ = [
    "FlowSchedule",
    "RowLevels",
    "TimestepMatrix",
    "WindowRows",
    "custom_schedule",
    "flow_schedule",
    "levels",
    "partial_schedule",
    "timestep_matrix",
    "window_matrix",
    "window_rows",
]
