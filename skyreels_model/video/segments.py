"""A film's finished parts as videos of their own, and one film of them without coding anew.

Each part begins with a picture that needs none before it, and all are coded alike. So their packets
in one file, each at its time, are the film.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from .codecs import VideoSettings
from .opening import Source, open_file
from .sound import SoundTrack
from .writer import FilmWriter, explain

PLAYLIST = "film.m3u"


@dataclass(frozen=True)
class SegmentFolder:
    """Where parts of a film lie, and what they were made with; vae: a name of its numbers."""

    folder: Path
    settings: VideoSettings
    rate: Fraction
    vae: str

    def path(self, window: str, skip: int, frames: int) -> Path:
        """The file of a part: of the frames of a window's name, after the first `skip` of them."""
        settings = self.settings
        rate = f"{self.rate.numerator}" + (
            f"_{self.rate.denominator}" if self.rate.denominator > 1 else ""
        )
        made = f"{settings.codec}-{settings.quality}-{settings.bit_depth}-{rate}-{self.vae}"
        return self.folder / f"{window}-{skip}-{frames}-{made}.{settings.kind.file}"


class JoinedWriter(FilmWriter):
    """As `FilmWriter`, of parts that are videos already: `append` takes them in order."""

    def append(self, part_source: Source) -> None:
        """Copy the packets of a part."""
        with open_file(part_source) as part, explain(self.path):
            source = part.streams.video[0]
            if self.container is None:
                self._copy(source)
            assert source.time_base is not None
            begin = self.frames / self.rate / source.time_base
            if begin.denominator != 1:
                raise ValueError("a part of the film has times between its frames")
            for packet in part.demux(source):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    packet.pts, packet.dts = packet.pts + int(begin), packet.dts + int(begin)
                    packet.stream = self.stream
                    self.container.mux(packet)
                    self.frames += 1
            if self.track:
                self._mux(self.track.encode(self.frames / self.rate))

    def _copy(self, source: Any) -> None:
        """Open the file for what is coded as a part is."""
        self._open_container()
        self.stream = self.container.add_stream_from_template(source, opaque=True)
        self.stream.codec_context.codec_tag = source.codec_context.codec_tag
        if self.sound:
            self.track = SoundTrack(self.container, self.sound, self.settings.kind.sound)
        self._begin()

    def _end_frames(self) -> None:
        """Nothing is held back of packets."""


def alike(parts: Sequence[Source]) -> bool:
    """Whether these are all there, and coded so that their packets can follow one another."""
    found = set()
    for source in parts:
        try:
            with open_file(source) as part:
                stream = part.streams.video[0]
                context = stream.codec_context
                size = context.width, context.height, context.pix_fmt
                colours = context.colorspace, context.color_primaries, context.color_trc
                how = context.name, colours, context.color_range, context.extradata
                found.add((size, how, stream.time_base))
        except (OSError, ValueError, IndexError):
            return False
    return len(found) == 1


def write_playlist(folder: Path, paths: Sequence[Path]) -> None:
    """A list of the parts in order, for players, which show them as one film."""
    from ..store.files import write_bytes

    lines = ["#EXTM3U", *(path.name for path in paths)]
    write_bytes(folder / PLAYLIST, ("\n".join(lines) + "\n").encode())
