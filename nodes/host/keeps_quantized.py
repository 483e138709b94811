"""The mark of layers that keep a quantised weight as it is."""


class KeepsQuantized:
    """A layer that loads what `QuantizedWeight.entries` gives."""
