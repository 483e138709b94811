"""What a step of a VAE's stream needs: bytes, from the layers' shapes alone.

Every tensor of a step is some number of channels x frames x positions, so that the bytes are a
constant of the configuration times height x width x bytes a number. At the published one that is,
for each pixel, 2365 numbers of cache and 972 of work in decoding, 1404 and 876 in encoding. Only
live tensors count; what a back end takes inside of an operation comes on top (`StepMemory.needed`).

On a card that is cuDNN's workspace for a convolution. Tensors lie channel by channel here, and its
kernels for matrix units want them position by position: input, weights and result once more, which
makes the peak larger by the parts `DECODE_INSIDE` and `ENCODE_INSIDE`. Kernels that would take more
are an offer, not a need: PyTorch asks for each one's workspace in turn and passes over those whose
allocation fails (`try_configs` in its `Conv_v8.cpp`). Where none is left its error does not tell of
memory, but of engines (`lack`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from .layers import PIECE, Downsample, ResidualBlock, Upsample
from .network import FRAME_CHANNELS, VideoVAE

PAST = 2  # frames that a causal convolution looks back
# What convolutions may take inside, as a part of the work: counted on the meta device at the
# published configuration.
DECODE_INSIDE, ENCODE_INSIDE = 0.6, 0.66


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step: `cache` stays between steps, `work` is needed on top during one.

    inside: what operations may take beside their live tensors. All are of a stream's second and
    later steps; the first, of one frame, needs less.
    """

    cache: int
    work: int
    inside: int

    @property
    def total(self) -> int:
        return self.cache + self.work

    @property
    def needed(self) -> int:
        """What the host is told, and people: with what a back end may take on top."""
        return self.total + self.inside


@dataclass
class _Walk:
    """Where a walk through the layers stands, in numbers: one for each channel, frame, position.

    held: what lives beside the layer at hand, for instance the frames that are yet to come.
    """

    frames: int
    area: int
    held: int = 0
    cache: int = 0
    work: int = 0

    @classmethod
    def begin(cls, vae: VideoVAE, height: int, width: int) -> _Walk:
        """Before a latent of so many px."""
        return cls(frames=1, area=(height // vae.space_factor) * (width // vae.space_factor))

    def size(self, channels: int, frames: int | None = None) -> int:
        return channels * (self.frames if frames is None else frames) * self.area

    def need(self, *sizes: int) -> None:
        self.work = max(self.work, self.held + sum(sizes))

    def causal(self, channels: int, out: int, beside: int = 0, past: int = PAST) -> None:
        """A convolution over time; `beside` lives on until it is done."""
        self.cache += self.size(channels, past)
        window = self.size(channels, self.frames + past)
        self.need(beside, window, max(self.size(channels), self.size(out)))

    def residual(self, block: ResidualBlock) -> None:
        convs: list[Any] = list(block.residual.values())[1::2]
        first, second = convs
        x, out = self.size(first.in_channels), self.size(first.out_channels)
        self.causal(first.in_channels, first.out_channels, beside=x)
        self.need(x, out, out)  # the second norm's input and result
        self.causal(second.in_channels, second.out_channels, beside=x)
        if not isinstance(block.shortcut, nn.Identity):
            self.need(x, out, out)

    def attention(self, channels: int) -> None:
        # The frame; queries, keys and values twice, in images and in tokens; the result.
        self.need(self.size(channels), self.size(8 * channels, 1))

    def resample(self, channels: int, out: int, factor: float, between: int) -> None:
        """Frames to another size one by one, then put together; `between` is made of each."""
        x, area = self.size(channels), int(self.area * factor)
        self.need(x, between, 2 * out * self.frames * area)
        self.area = area

    def upsample(self, block: Upsample) -> None:
        conv: Any = block.resample["1"]
        if block.time_conv is not None:
            self.causal(conv.in_channels, 2 * conv.in_channels)
            self.frames *= 2
            self.need(self.size(conv.in_channels), self.size(conv.in_channels))
        enlarged = self.size(conv.in_channels, 4)
        self.resample(conv.in_channels, conv.out_channels, 4, enlarged)

    def downsample(self, block: Downsample) -> None:
        conv: Any = block.resample["1"]
        channels = conv.in_channels
        self.resample(channels, channels, 1 / 4, self.size(channels, 1))
        if block.time_conv is not None:
            self.causal(channels, channels, beside=self.size(channels), past=1)
            self.frames = max(self.frames // 2, 1)

    def blocks(self, blocks: Any) -> None:
        for block in blocks:
            if isinstance(block, ResidualBlock):
                self.residual(block)
            elif isinstance(block, Upsample):
                self.upsample(block)
            else:
                self.downsample(block)

    def middle(self, blocks: Any) -> None:
        before, attention, after = blocks
        self.residual(before)
        self.attention(attention.proj.in_channels)
        self.residual(after)

    def head(self, conv: Any) -> None:
        x = self.size(conv.in_channels)
        self.causal(conv.in_channels, conv.out_channels, beside=x)

    def finish(self, itemsize: int, inside: float) -> StepMemory:
        """Its numbers as bytes; `inside` is a part of the work."""
        work = self.work * itemsize
        return StepMemory(self.cache * itemsize, work, int(work * inside))


def decode_memory(vae: VideoVAE, height: int, width: int, itemsize: int) -> StepMemory:
    """One latent to its frames of height x width px, at itemsize bytes a number."""
    walk = _Walk.begin(vae, height, width)
    _coarse(walk, vae, 0, vae.decoder.split)
    _fine(walk, vae)
    return walk.finish(itemsize, DECODE_INSIDE)


@dataclass(frozen=True)
class DecodeStages:
    """As `decode_memory`, of each stage of `Decoder.coarse` and of `Decoder.fine`, alone.

    given: bytes of what each is given of a latent, the last of them what `fine` is.
    """

    coarse: list[StepMemory]
    fine: StepMemory
    given: list[int]


def stages_memory(vae: VideoVAE, height: int, width: int, itemsize: int) -> DecodeStages:
    """What each stage of decoding needs where they are run one by one."""
    walk, decoder = _Walk.begin(vae, height, width), vae.decoder
    coarse, given = [], [walk.size(vae.z_dim)]
    for start, stop in decoder.stages:
        walk.cache, walk.work, walk.held = 0, 0, given[-1] if start else 0
        _coarse(walk, vae, start, stop)
        coarse.append(walk.finish(itemsize, DECODE_INSIDE))
        given.append(walk.size(_channels_before(decoder.upsamples[stop:])))
    walk.cache = walk.work = 0
    _fine(walk, vae, held=given[-1])
    fine = walk.finish(itemsize, DECODE_INSIDE)
    return DecodeStages(coarse, fine, [size * itemsize for size in given])


def _coarse(walk: _Walk, vae: VideoVAE, start: int, stop: int) -> None:
    decoder, conv = vae.decoder, cast(Any, vae.decoder.conv1)
    if start == 0:
        walk.causal(conv.in_channels, conv.out_channels)
        walk.middle(decoder.middle)
    walk.blocks(decoder.upsamples[start:stop])


def _fine(walk: _Walk, vae: VideoVAE, held: int = 0) -> None:
    """held: numbers that live beside all of it."""
    decoder: Any = vae.decoder
    walk.held = held
    walk.blocks(decoder.upsamples[decoder.split : decoder.joint])
    channels = _channels_before(decoder.upsamples[decoder.joint :])
    pixels = walk.area * _enlarged(decoder.upsamples[decoder.joint :])
    walk.held = held + walk.size(channels) + FRAME_CHANNELS * walk.frames * pixels
    walk.frames = min(PIECE, walk.frames)
    walk.blocks(decoder.upsamples[decoder.joint :])
    walk.head(decoder.head["2"])


def _enlarged(blocks: Any) -> int:
    """How many positions blocks make of one."""
    return 4 ** sum(isinstance(block, Upsample) for block in blocks)


def encode_memory(vae: VideoVAE, height: int, width: int, itemsize: int) -> StepMemory:
    """One latent's frames of height x width px to the latent, at itemsize bytes a number."""
    encoder: Any = vae.encoder
    frames = vae.time_factor
    walk = _Walk(frames=min(PIECE, frames), area=height * width)
    fine = encoder.downsamples[: encoder.joint]
    shrunk = 4 ** sum(isinstance(block, Downsample) for block in fine)
    coarse = _channels_before(encoder.downsamples[encoder.joint :]) * height * width // shrunk
    walk.held = FRAME_CHANNELS * frames * height * width + coarse * (frames - walk.frames)
    walk.causal(encoder.conv1.in_channels, encoder.conv1.out_channels)
    walk.blocks(fine)
    walk.held, walk.frames = 0, frames
    walk.need(2 * coarse * frames)
    walk.blocks(encoder.downsamples[encoder.joint :])
    walk.middle(encoder.middle)
    walk.head(encoder.head["2"])
    return walk.finish(itemsize, ENCODE_INSIDE)


def _channels_before(blocks: Any) -> int:
    """Input channels of the first of these blocks."""
    block: Any = blocks[0]
    conv: Any = block.residual["2"] if hasattr(block, "residual") else block.resample["1"]
    return int(conv.in_channels)
