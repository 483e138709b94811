"""How much a file may hold before reading it would take minutes or all memory."""

from __future__ import annotations

import pathlib

# The largest published model has 1303 tensors, 5000 with scales beside them.
MOST_TENSORS = 50_000


def refuse_too_many(file: pathlib.Path, count: int) -> None:
    """Raise ValueError for more tensors than any model has."""
    if count > MOST_TENSORS:
        raise ValueError(
            f"{file.name} holds {count} tensors; a file may have up to {MOST_TENSORS}, many times "
            f"what any model has: it was made wrongly, get another one"
        )
