"""A film as a folder of numbered PNG files, and its sound beside them."""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor

from ..store.files import sync_folder
from .codecs import VideoSettings
from .pixels import make_frames
from .sound import AnySound, SoundTrack
from .unfinished import Claim
from .writer import FilmWriter, explain, sync

FIRST = 33  # bytes of a PNG file before its second chunk
PATTERN = "frame_%06d.png"
SOUND = "sound.wav"


class PictureWriter(FilmWriter):
    """As `FilmWriter`, of a folder: its frames are numbered from 0, the first has the metadata."""

    def write(self, frames: Tensor) -> None:
        with explain(self.path):
            if self.container is None:
                self.container = _open_encoder(frames, self.settings.pixels)
                shutil.rmtree(self.unfinished, ignore_errors=True)
                self.unfinished.mkdir(parents=True)
                self.claim = Claim(self.unfinished)
            for frame in make_frames(frames, self.settings.pixels):
                content = b"".join(map(bytes, self.container.encode(frame)))
                if not self.frames:
                    content = content[:FIRST] + text_chunks(self.metadata) + content[FIRST:]
                path = self.unfinished / (PATTERN % self.frames)
                with path.open("wb") as out:
                    out.write(content)
                    out.flush()
                    os.fsync(out.fileno())
                self.frames += 1

    def finish(self) -> None:
        if self.container is None:
            raise ValueError("a film without frames cannot be written")
        with explain(self.path):
            if self.sound:
                self._write_sound()
            self.container = None
            sync_folder(self.unfinished)
            os.replace(self.unfinished, self.path)
            sync_folder(self.path.parent)

    def _write_sound(self) -> None:
        import av

        assert self.sound is not None
        path = self.unfinished / SOUND
        with av.open(str(path), "w", format="wav") as container:
            track = SoundTrack(container, self.sound, "pcm_s16le")
            for packet in track.encode(self.frames / self.rate, last=True):
                container.mux(packet)
        sync(path)

    def abandon(self) -> None:
        self.container = None
        shutil.rmtree(self.unfinished, ignore_errors=True)


def _open_encoder(frames: Tensor, pixels: str) -> Any:
    import av

    encoder: Any = av.CodecContext.create("png", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt, encoder.time_base = pixels, 1
    encoder.thread_count = 1  # a frame goes in, and comes out
    return encoder


def text_chunks(metadata: Mapping[str, str]) -> bytes:
    """Texts as a PNG file has them."""
    chunks = b""
    for name, text in metadata.items():
        # Of other letters JSON has the numbers.
        content = name.encode("latin-1", "replace") + b"\0" + text.encode("latin-1", "replace")
        body = b"tEXt" + content
        chunks += len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return chunks


def open_writer(
    path: Path,
    settings: VideoSettings,
    rate: Fraction,
    metadata: Mapping[str, str] | None = None,
    sound: AnySound | None = None,
) -> FilmWriter:
    """The writer of a file, or of a folder of pictures, with these settings."""
    kind = PictureWriter if settings.kind.file == "png" else FilmWriter
    return kind(path, settings, rate, metadata, sound)


def join_pictures(folder: Path, path: Path, rate: Fraction) -> None:
    """A file with the pictures of a folder as they are."""
    import av

    options = {"framerate": str(rate)}
    with (
        av.open(str(folder / PATTERN), options=options, format="image2") as pictures,
        av.open(str(path), "w", format="mp4") as out,
    ):
        source = pictures.streams.video[0]
        stream = out.add_stream_from_template(source, opaque=True)
        for number, packet in enumerate(pictures.demux(source)):
            if packet.size:
                packet.stream, packet.time_base = stream, 1 / rate
                packet.pts = packet.dts = number
                out.mux(packet)
