"""The mark of layers that keep a quantised weight as it is."""

from __future__ import annotations


class KeepsQuantized:
    """A layer that loads what `QuantizedWeight.entries` gives."""
