"""What models are asked, one text file each. Edit them to ask something else."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def read_prompt(name: str) -> str:
    """The text of `name`.txt in this folder."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8").strip()
