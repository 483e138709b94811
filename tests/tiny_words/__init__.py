"""Engines for tests: one that reads from a script."""

from .scripted import ScriptedEngine

__all__ = ["ScriptedEngine"]
