"""Sound beside a film: cut or filled up to its length, and fed piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor

from .opening import Source, open_file

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# Of AAC; any other is brought to the last.
AAC_RATES = (96000, 88200, 64000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 48000)


class AnySound(Protocol):
    """What is heard: samples a second, FFmpeg's name of the channels, and any samples of it."""

    @property
    def rate(self) -> int: ...

    @property
    def layout(self) -> str: ...

    def cut(self, start: int, stop: int) -> Tensor: ...


@dataclass(frozen=True)
class Sound:
    """A waveform (channels, samples) in -1..1, and its samples a second.

    begin: seconds of silence before it.
    """

    waveform: Tensor
    rate: int
    begin: float = 0.0

    def __post_init__(self) -> None:
        channels = len(self.waveform)
        if channels not in LAYOUTS:
            nearest = min(LAYOUTS, key=lambda count: abs(count - channels))
            raise ValueError(
                f"audio has {channels} channels; it must have 1, 2 or 6; nearest: {nearest}"
            )

    @property
    def layout(self) -> str:
        return LAYOUTS[len(self.waveform)]

    def cut(self, start: int, stop: int) -> Tensor:
        """The samples [start, stop) of the film, (channels, stop - start); silence elsewhere."""
        begin = round(self.begin * self.rate)
        heard = self.waveform[:, max(start - begin, 0) : max(stop - begin, 0)]
        before = min(max(begin - start, 0), stop - start)
        after = stop - start - before - heard.shape[1]
        return torch.nn.functional.pad(heard.float().cpu(), (before, after))


class FileSound:
    """The sound of a video file, read while it is written: asked for from its first sample on.

    start: the second of the file that is the first to be heard. seconds: for how long. begin:
    seconds of silence before it.
    """

    def __init__(self, source: Source, start: float, seconds: float, begin: float = 0.0) -> None:
        self.container = open_file(source)
        # Where FFmpeg has no decoder, there is no codec context.
        streams = (one for one in self.container.streams.audio if one.codec_context is not None)
        self.stream = stream = next(streams)
        self.start, self.rate = start, int(stream.rate)
        self.layout = LAYOUTS.get(stream.channels, "stereo")
        channels = next(count for count, name in LAYOUTS.items() if name == self.layout)
        self.silent, self.heard = round(begin * self.rate), round(seconds * self.rate)
        self.pieces = self._decode()
        # Samples that are decoded, and the number of the first of them.
        self.kept, self.position = torch.zeros(channels, 0), 0

    def _decode(self) -> Iterator[Tensor]:
        """All samples from the first to be heard on, (channels, n)."""
        import av

        resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=self.rate)
        first = True
        for frame in self.container.decode(self.stream):
            for part in resampler.resample(frame):
                samples = torch.from_numpy(part.to_ndarray())
                late = round(((part.time or 0) - self.start) * self.rate) if first else 0
                if late <= -samples.shape[1]:
                    continue
                first = False
                yield torch.nn.functional.pad(samples, (late, 0))
        self.container.close()

    def cut(self, start: int, stop: int) -> Tensor:
        """The samples [start, stop) of the film, none of them before those asked for last."""
        first, last = start - self.silent, min(stop - self.silent, self.heard)
        while self.position + self.kept.shape[1] < last:
            piece = next(self.pieces, None)
            if piece is None:
                break
            self.kept = torch.cat([self.kept, piece], dim=1)
        passed = min(max(first - self.position, 0), self.kept.shape[1])
        self.kept, self.position = self.kept[:, passed:], self.position + passed
        heard = self.kept[:, : max(last - self.position, 0)]
        before = min(max(-first, 0), stop - start)
        after = stop - start - before - heard.shape[1]
        return torch.nn.functional.pad(heard, (before, after))


class SoundTrack:
    """The sound's stream in a file that is being written."""

    def __init__(self, container: Any, sound: AnySound, codec: str) -> None:
        rate = sound.rate
        if codec == "aac" and rate not in AAC_RATES:
            rate = AAC_RATES[-1]
        self.sound, self.done = sound, 0
        self.stream = container.add_stream(codec, rate=rate, layout=sound.layout)

    def encode(self, length: Fraction, last: bool = False) -> Iterator[Any]:
        """The packets up to so many seconds from the beginning; all where that is the last."""
        import av

        stop = round(length * self.sound.rate)
        while self.done < stop:
            # A second at a time: a film without frames for a while may be far behind.
            end = min(self.done + self.sound.rate, stop)
            samples = self.sound.cut(self.done, end)
            frame = av.AudioFrame.from_ndarray(
                samples.contiguous().numpy(), format="fltp", layout=self.sound.layout
            )
            frame.sample_rate, frame.pts = self.sound.rate, self.done
            frame.time_base = Fraction(1, self.sound.rate)
            self.done = end
            yield from self.stream.encode(frame)
        if last:
            yield from self.stream.encode(None)
