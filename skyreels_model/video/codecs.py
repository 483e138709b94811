"""The codecs of a film's file: who encodes, in which pixels, at which quality, in what file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..rules import refusal, require_choice, require_whole

Options = Mapping[str, str]
BIT_DEPTHS = ("8", "10")
BOUNDS = {"quality": (0, 100)}
PRORES = ("proxy", "lt", "standard", "hq")


@dataclass(frozen=True)
class Codec:
    """How a film is coded.

    encoders: FFmpeg's names, the first that is there is used. pixels: FFmpeg's format by bit depth.
    options: the encoder's, by quality. file: the kind of file, as FFmpeg calls it; png is a folder
    of pictures. sound: the codec of what is heard. smallest: the least width and height in px.
    """

    encoders: tuple[str, ...]
    pixels: Mapping[str, str]
    options: Callable[[int], Options]
    file: str = "mp4"
    sound: str = "aac"
    tag: str = ""
    smallest: int = 16


def _rate_factor(best: int, worst: int, **more: str) -> Callable[[int], Options]:
    """Options with a constant rate factor: `best` at quality 100, one more for every 2 less."""

    def options(quality: int) -> Options:
        return {"crf": str(min(best + (100 - quality) // 2, worst)), **more}

    return options


def _profile(quality: int) -> Options:
    return {"profile": PRORES[min(quality // 25, 3)]}


def _lossless(quality: int) -> Options:
    return {}


YUV420 = {"8": "yuv420p", "10": "yuv420p10le"}
CODECS = {
    "h264": Codec(("libx264",), YUV420, _rate_factor(8, 51)),
    # hvc1 is what Apple's players take. x265 writes to the terminal what no one asked for, and on
    # pictures of 48 x 32 px over memory that is not its own.
    "hevc": Codec(
        ("libx265",),
        YUV420,
        _rate_factor(10, 51, **{"x265-params": "log-level=error"}),
        tag="hvc1",
        smallest=64,
    ),
    "av1": Codec(("libsvtav1",), YUV420, _rate_factor(15, 63, preset="8")),
    "vp9": Codec(("libvpx-vp9",), YUV420, _rate_factor(14, 63, b="0", **{"row-mt": "1"})),
    "prores": Codec(("prores_ks",), {"10": "yuv422p10le"}, _profile, file="mov", sound="pcm_s16le"),
    "ffv1": Codec(("ffv1",), {"8": "bgr0", "10": "gbrp10le"}, _lossless, sound="flac"),
    "png": Codec(("png",), {"8": "rgb24", "10": "rgb48be"}, _lossless, file="png", sound=""),
}


@dataclass(frozen=True)
class VideoSettings:
    """What a person sets of a film's file. Raises ValueError for what this PyAV cannot write."""

    codec: str = "h264"
    quality: int = 80
    bit_depth: str = "8"

    def __post_init__(self) -> None:
        require_choice("codec", self.codec, list(CODECS))
        require_whole("quality", self.quality, *BOUNDS["quality"])
        require_choice("bit_depth", self.bit_depth, BIT_DEPTHS)
        there = [name for name in CODECS if find_encoder(name)]
        if self.codec not in there:
            rule = f"one that this PyAV has: {', '.join(there)}"
            raise refusal("codec", self.codec, rule)
        if self.bit_depth not in self.kind.pixels:
            return  # ProRes has only 10
        if not self._writes(self.codec):
            able = [name for name in there if self._writes(name)]
            rule = f"{'8' if self.bit_depth == '10' else '10'} for {self.codec} with this PyAV"
            raise refusal("bit_depth", self.bit_depth, f"{rule}; others: {', '.join(able)}")

    @property
    def kind(self) -> Codec:
        return CODECS[self.codec]

    @property
    def encoder(self) -> str:
        return find_encoder(self.codec)

    @property
    def pixels(self) -> str:
        """FFmpeg's name of the format of the pixels."""
        return self.kind.pixels.get(self.bit_depth, next(iter(self.kind.pixels.values())))

    @property
    def options(self) -> Options:
        return self.kind.options(int(self.quality))

    def require_size(self, width: int, height: int) -> None:
        """Raise ValueError for a film that is too small for the codec."""
        least = self.kind.smallest
        if min(width, height) < least:
            able = [name for name in CODECS if CODECS[name].smallest <= min(width, height)]
            rule = f"one for {width} x {height} px ({self.codec} takes {least} px and more)"
            raise refusal("codec", self.codec, rule, ", ".join(able))

    def _writes(self, codec: str) -> bool:
        """Whether that codec's encoder takes pixels of this bit depth."""
        import av

        wanted = CODECS[codec].pixels.get(self.bit_depth)
        formats = av.codec.Codec(find_encoder(codec), "w").video_formats or []
        return wanted in [one.name for one in formats]


def find_encoder(codec: str) -> str:
    """The name of the encoder that this PyAV has for a codec; nothing where it has none."""
    import av

    for name in CODECS[codec].encoders:
        with contextlib.suppress(ValueError):  # PyAV's error for an unknown codec is one
            return str(av.codec.Codec(name, "w").name)
    return ""
