"""Noise levels: of a step, of every latent frame in every model call."""

from .flow import FlowSchedule, custom_schedule, flow_schedule, partial_schedule
from .matrix import TimestepMatrix, levels, timestep_matrix, window_matrix

__all__ = [
    "FlowSchedule",
    "TimestepMatrix",
    "custom_schedule",
    "flow_schedule",
    "levels",
    "partial_schedule",
    "timestep_matrix",
    "window_matrix",
]
