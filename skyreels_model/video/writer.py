"""A film's file while it is written: whole under its name, or not there.

Frames come in pieces, and leave as packets; so memory does not grow with the film. A frame's time
is its number, in units of a frame, so that none is lost or doubled.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from ..lack import explain_lack
from ..store.files import sync_folder
from .codecs import VideoSettings
from .fragments import OPTIONS, join_fragments
from .pixels import BT709, LIMITED, make_frames
from .priority import keep_priority
from .sound import AnySound, SoundTrack
from .unfinished import Claim, unfinished_name

WITHOUT_ROOM = (
    "nothing is left of it. Choose codec h264, which takes the least, or a smaller film (width, "
    "height), or close what else uses the memory"
)
NTSC = Fraction(1000, 1001)
LOG = logging.getLogger("skyreels_v2")


def exact_rate(fps: float) -> Fraction:
    """The frame rate that is meant: 23.976 is 24000/1001."""
    whole = round(fps / NTSC)
    if abs(float(whole * NTSC) - fps) < 5e-4 and fps != round(fps):
        return whole * NTSC
    return Fraction(round(fps * 1000), 1000)


class FilmWriter:
    """One film's file: `with FilmWriter(...) as writer: writer.write(frames)`.

    rate: frames a second. metadata: texts by name. A block that ends with an error leaves nothing.
    Raises OSError where the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        settings: VideoSettings,
        rate: Fraction,
        metadata: Mapping[str, str] | None = None,
        sound: AnySound | None = None,
    ) -> None:
        self.path, self.settings, self.rate, self.sound = path, settings, rate, sound
        self.metadata = dict(metadata or {})
        self.unfinished = unfinished_name(path)
        self.frames = 0
        self.container: Any = None
        self.stream: Any = None
        self.track: SoundTrack | None = None
        self.claim: Claim | None = None

    def write(self, frames: Tensor) -> None:
        """Frames (n, H, W, 3) in 0..1, which follow the ones before."""
        with explain(self.path), keep_priority():
            if self.container is None:
                self._open(frames.shape[2], frames.shape[1])
            for frame in make_frames(frames, self.settings.pixels):
                frame.pts, frame.time_base = self.frames, 1 / self.rate
                self.frames += 1
                self._mux(self.stream.encode(frame))
            if self.track:
                self._mux(self.track.encode(self.frames / self.rate))

    def _open_container(self) -> None:
        import av

        self.path.parent.mkdir(parents=True, exist_ok=True)
        kind = self.settings.kind.file
        self.container = av.open(str(self.unfinished), "w", format=kind, options=OPTIONS)
        self.container.metadata.update(self.metadata)

    def _begin(self) -> None:
        """Let the file be there, now that its streams are known."""
        self.container.start_encoding()
        self.claim = Claim(self.unfinished)

    def _open(self, width: int, height: int) -> None:
        kind = self.settings.kind
        self.settings.require_size(width, height)
        self._open_container()
        self.stream = self.container.add_stream(self.settings.encoder, rate=self.rate)
        self.stream.width, self.stream.height = width, height
        self.stream.pix_fmt, self.stream.options = self.settings.pixels, self.settings.options
        context = self.stream.codec_context
        context.time_base = 1 / self.rate
        if kind.tag:
            context.codec_tag = kind.tag
        if self.settings.pixels.startswith("yuv"):
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = LIMITED
        if self.sound:
            self.track = SoundTrack(self.container, self.sound, kind.sound)
        self._begin()

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self.container.mux(packet)

    def _end_frames(self) -> None:
        """Let the encoder give what it holds back."""
        packets = self.stream.encode(None)
        if self.settings.codec == "hevc" and len(packets) == self.frames:
            time_few(packets, self.stream.codec_context.has_b_frames)
        self._mux(packets)

    def finish(self) -> None:
        """Put the file under its name, all of it on the disk."""
        if self.container is None:
            raise ValueError("a film without frames cannot be written")
        with explain(self.path), keep_priority():
            self._end_frames()
            if self.track:
                self._mux(self.track.encode(self.frames / self.rate, last=True))
            container, self.container = self.container, None
            container.close()
            self._join()
            sync(self.unfinished)
            os.replace(self.unfinished, self.path)
            sync_folder(self.path.parent)

    def _join(self) -> None:
        """Give the file one index. It is whole without one, too, if less widely read."""
        try:
            join_fragments(self.unfinished)
        except ValueError as error:
            told = "%s is whole, but in fragments, which some programs cannot read: %s"
            LOG.warning(told, self.path.name, error)

    def abandon(self) -> None:
        """Leave nothing of the file."""
        container, self.container = self.container, None
        if container is not None:
            with contextlib.suppress(Exception):  # of a full disk: it has been told
                container.close()
        with contextlib.suppress(OSError):
            self.unfinished.unlink(missing_ok=True)

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.finish()
        except BaseException:
            self.abandon()
            raise
        else:
            if error is not None:
                self.abandon()
        finally:
            if self.claim:
                self.claim.release()


def time_few(packets: Sequence[Any], late: int) -> None:
    """Say when each of all packets of a film is decoded: of a few, x265 gives any time at all.

    late: by how many frames decoding is ahead at least, as in a film that these are part of.
    """
    shown = sorted(packet.pts for packet in packets)
    ahead = (time - packet.pts for time, packet in zip(shown, packets, strict=True))
    late = max(late, *ahead)
    for time, packet in zip(shown, packets, strict=True):
        packet.dts = time - late


def sync(path: Path) -> None:
    """Let what was written to a file survive a power cut."""
    with path.open("rb+") as written:
        os.fsync(written.fileno())


@contextlib.contextmanager
def explain(path: Path) -> Iterator[None]:
    """An error of the system says what could not be written, and what is left."""
    try:
        with explain_lack("writing the video", WITHOUT_ROOM):
            yield
    except OSError as error:
        why = f"the video could not be written: {error.strerror or error}; nothing is left of it"
        raise OSError(error.errno, why, str(path.parent)) from error
