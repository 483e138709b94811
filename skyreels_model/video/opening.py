"""A file, or a file's content, opened by FFmpeg."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Source = str | Path | io.BytesIO  # a path, or a file's content


def open_file(source: Source) -> Any:
    """PyAV's container of it, from its beginning. Several may be read at once."""
    import av

    # Each reader of a content has a place of its own in it; the bytes are shared.
    if isinstance(source, io.BytesIO):
        return av.open(io.BytesIO(source.getvalue()))
    return av.open(str(source))


def decode_from(source: Source, time: int, jumps: Sequence[int]) -> Iterator[Any]:
    """The frames shown at `time` and after it, and some before, in order; those without times not.

    Jumps to each of `jumps` until one does not land after `time`, as in some kinds of file they do;
    where all do, the file is decoded from its beginning. Times are in units of the stream.
    """
    with open_file(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for jump in jumps:
            container.seek(jump, stream=stream)
            frames = (frame for frame in container.decode(stream) if frame.pts is not None)
            first = next(frames, None)
            if first is not None and first.pts <= time:
                yield first
                yield from frames
                return
    with open_file(source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield from (frame for frame in container.decode(stream) if frame.pts is not None)
