"""Engines for tests: one that reads from a script, and tiny random models."""

from .checkpoints import write_model
from .scripted import ScriptedEngine

__all__ = ["ScriptedEngine", "write_model"]
