"""A file, or a file's content, opened by FFmpeg."""

from __future__ import annotations

import io
from typing import Any

Source = str | io.BytesIO  # a path, or a file's content


def open_file(source: Source) -> Any:
    """PyAV's container of it, from its beginning."""
    import av

    if isinstance(source, io.BytesIO):
        source.seek(0)
    return av.open(source)
