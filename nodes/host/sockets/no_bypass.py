"""Layers that the host's bypass LoRAs, which take every weight for a product's, leave alone."""

from __future__ import annotations

from typing import Any

_BYPASS = "comfy.weight_adapter.bypass"


class NoBypass:
    """A layer whose `forward` bypass adapters do not replace: it is no product with its weight.

    So training with them skips it, as it skips what the host's own Wan has in its place. Without
    bypass, adapters change the weight itself, and act here as anywhere.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        adapter = type(getattr(value, "__self__", None))
        if name != "forward" or adapter.__module__ != _BYPASS:
            super().__setattr__(name, value)
