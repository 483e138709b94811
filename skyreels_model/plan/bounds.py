"""What each number of a plan may be, from the least to the most; widgets take theirs from here."""

from __future__ import annotations

from ..grid import latent_length
from ..schedule.flow import MAX_STEPS

SHORTEST = 0.001  # s: of a shot; less than a frame of any film
BOUNDS: dict[str, tuple[float, float]] = {
    "frames": (1, 4_000_001),
    "seconds": (0.0, 86400.0),
    "fps": (1, 240),
    "clip_fps": (0.1, 1000.0),
    "width": (16, 4096),
    "height": (16, 4096),
    "window": (5, 1001),
    "overlap": (1, 997),
    "steps": (1, MAX_STEPS),
    "shift": (0.1, 100.0),
    "ar_step": (0, 1000),
    "block_size": (1, 250),
    "prefix_noise": (0, 60),
    "anchor": (0.0, 1.0),
    "ease": (0, 1000),
    "lora": (-20.0, 20.0),
    "denoise": (0.05, 1.0),
    "refresh_every": (1, 1000),
}


def least_sliding_ar_step(steps: int, window: int, block_size: int) -> int:
    """The least ar_step of a sliding film: whatever leaves the view, `window` frames, is done.

    From a block's first model call to its last, the view moves on by as many blocks as start in
    between, one every ar_step calls. It holds latent_length(window) // block_size of them, at
    least one.
    """
    blocks = latent_length(window) // block_size
    return -(-steps // blocks)
