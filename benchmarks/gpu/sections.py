"""The sections in their order, the most valuable first: file, time, columns of the table."""

from __future__ import annotations

from dataclasses import dataclass

# Latents of 97 frames at 540P and of 121 at 720P: frames, height, width.
SIZES = {"540P": (25, 68, 120), "720P": (31, 90, 160)}
TOTAL = 525  # seconds for all of it
FORWARD = ("way", "s a row", "TFLOP/s", "of ceiling", "beyond weights", "estimate", "reserved")


@dataclass(frozen=True)
class Section:
    """One section: its name for `--only`, its file, the seconds it may take, its columns.

    All of them together may not take so long: what is last gives way on a slow card.
    """

    name: str
    file: str
    title: str
    seconds: int
    columns: tuple[str, ...]


SECTIONS = (
    Section(
        "card", "card", "The card: copies, products, our kernels", 50, ("what", "value", "unit")
    ),
    Section(
        "films",
        "films",
        "Films through ComfyUI, under its dynamic memory",
        125,
        ("film", "seconds", "difference", "weights on the card"),
    ),
    Section(
        "attention",
        "attention",
        "Attention over the tokens of a window at {size}, bf16",
        60,
        ("back end", "heads", "ms", "TFLOP/s", "of ceiling", "error"),
    ),
    Section(
        "precision",
        "precision",
        "Error of a bf16 forward against float32",
        60,
        ("way", "tokens", "error", "guided at 6", "to the reference"),
    ),
    Section("1.3B", "forwards", "A row of 1.3B at {size}", 100, FORWARD),
    Section("14B", "forwards", "A row of 14B at {size}", 170, FORWARD),
    Section(
        "profile",
        "profiled",
        "Where a forward of 14B at {size} spends its time",
        60,
        ("what", "calls", "ms", "share", "TFLOP/s", "of ceiling"),
    ),
    Section(
        "elementwise",
        "elementwise",
        "Kernels, norms and rotations of 14B at {size}, bf16",
        60,
        ("what", "ms", "GB/s", "of ceiling", "error"),
    ),
    Section(
        "vae",
        "coding",
        "The VAE at {size}, 33 frames",
        90,
        ("way", "seconds", "frames/s", "beyond weights", "difference"),
    ),
    Section(
        "compile",
        "compiled",
        "Compiled blocks, 1.3B at {size}",
        100,
        ("way", "first s", "s a row", "beyond weights", "difference"),
    ),
)


def chosen(names: list[str]) -> list[Section]:
    """The sections of these names or numbers (from 1), in their own order; all if none is given.

    Raises ValueError for a name that no section has.
    """
    known = {section.name for section in SECTIONS} | {str(n + 1) for n in range(len(SECTIONS))}
    for name in names:
        if name not in known:
            legal = ", ".join(section.name for section in SECTIONS)
            raise ValueError(f"--only is {name}; it must be one of: {legal}, or its number")
    numbered = enumerate(SECTIONS, 1)
    return [one for n, one in numbered if not names or one.name in names or str(n) in names]
