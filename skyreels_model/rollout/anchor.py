"""A window's colours held to its sequence's first one's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..drift.colours import anchor_colours, statistics
from ..plan.windows import Window
from .film import Film


def hold_window(film: Film, window: Window, latents: Tensor) -> Tensor:
    """The window with the colours of its own latents held to those of its sequence's first one."""
    given, own = latents.tensor_split([window.repeated], dim=2)
    if not film.plan.continues(window) or film.reference is None:
        film.reference = statistics(own)
    elif film.plan.anchor:
        own = anchor_colours(own, film.reference, film.plan.anchor)
        latents = torch.cat([given, own], dim=2)
    return latents
