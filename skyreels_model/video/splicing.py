"""A film beside a clip in a file: the clip's packets as they are, where they fit the new ones."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from .codecs import VideoSettings
from .opening import Source, open_file
from .reader import FileFilm
from .segments import JoinedWriter, alike
from .sound import AnySound
from .unfinished import UNFINISHED, Claim
from .writer import FilmWriter


def why_coded(clip: FileFilm, settings: VideoSettings, rate: Fraction) -> str:
    """Why a clip's packets cannot be those of a film coded so; nothing where they can."""
    index = clip.index
    if settings.kind.file == "png":
        return "it becomes pictures"
    if clip.places != tuple(range(len(index.times))):
        return "some of its frames are left out or shown twice"
    steps = ((time * index.unit * rate, number) for number, time in enumerate(index.times))
    if index.counted or any(place != number for place, number in steps):
        return f"its frames are not exactly {float(rate):.5g} a second"
    if _is_turned(clip.source):
        return "it is filmed upright by a flag"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / f"probe.{settings.kind.file}"
        with FilmWriter(probe, settings, rate) as writer:
            writer.write(torch.zeros(1, clip.height, clip.width, 3))
        return "" if alike([clip.source, probe]) else "it is coded in another way"


def _is_turned(source: Source) -> bool:
    with open_file(source) as container:
        frame = next(container.decode(container.streams.video[0]))
        return bool(round(getattr(frame, "rotation", 0)))


def write_spliced(
    path: Path,
    settings: VideoSettings,
    rate: Fraction,
    metadata: Mapping[str, str],
    sound: AnySound | None,
    before: Source | None,
    pieces: Iterable[Tensor],
    after: Source | None,
) -> None:
    """Write a film of new frames between clips whose packets are copied.

    pieces: the new frames (n, H, W, 3), a few at a time; they are coded in a file of their own.
    """
    made = path.with_name(f"{path.name}.made{UNFINISHED}")
    claim = None
    try:
        with FilmWriter(made, settings, rate) as writer:
            for piece in pieces:
                writer.write(piece)
        claim = Claim(made)
        joined = JoinedWriter(path, settings, rate, metadata, sound)
        with joined:
            for part in (before, made, after):
                if part is not None:
                    joined.append(part)
    finally:
        made.unlink(missing_ok=True)
        if claim:
            claim.release()
