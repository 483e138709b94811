"""Our VAE's streams in the host: untiled where a step fits the device, else in tiles automatically.

The frames of a film never lie on the device, and its pixels become numbers of the VAE chunk by
chunk; so the memory does not grow with the film. With tiles, their caches lie in the machine's
memory, pinned where the host has room for that. On a CPU, where that is no help, decoding goes by
way of the disk.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import comfy.model_management
import folder_paths
import torch
from torch import Tensor

from ....skyreels_model.budget import GB
from ....skyreels_model.grid import SPATIAL_STRIDE, TEMPORAL_STRIDE, frame_length, latent_length
from ....skyreels_model.vae.memory import StepMemory, decode_memory, encode_memory
from ....skyreels_model.vae.network import DecodeStream, EncodeStream, VideoVAE
from ....skyreels_model.vae.on_disk import Way, decode_on_disk, find_way
from ....skyreels_model.vae.tiles import (
    SMALLEST,
    Side,
    TiledDecodeStream,
    TiledEncodeStream,
    TiledStream,
    Tiling,
    tilings,
)
from .memory import explain_lack, lacks_memory

STEP = 4  # latents between the sizes of tiles that can be asked for
BLOCK = 8  # latents that go through a tile before the next tile
# What to change where tiles do not fit either.
WITHOUT_ROOM = (
    f"tiles were tried. Set tile_size to {SMALLEST * SPATIAL_STRIDE}, make the film smaller "
    f"(width, height), or close what else uses the memory"
)
# What a step on a CPU takes of RAM before the disk is used: at 960 x 544 a film then stays below
# 2 GB.
MOST = 1_600_000_000
LOG = logging.getLogger("skyreels_v2")
Convert = Callable[[Tensor], Tensor]
Stream = DecodeStream | EncodeStream | TiledStream


class StreamedVAE(Protocol):
    """What the streams need of a `HostVAE`."""

    first_stage_model: VideoVAE
    vae_dtype: torch.dtype
    device: torch.device
    output_device: torch.device
    patcher: Any
    process_input: Callable[[Tensor], Tensor]
    process_output: Callable[[Tensor], Tensor]


def make_tiling(tile_size: int) -> Tiling | None:
    """Tiles of so many px; None for 0. Raises ValueError for any other than 0, 64, 96, 128, …"""
    smallest, step = SMALLEST * SPATIAL_STRIDE, STEP * SPATIAL_STRIDE
    if not tile_size:
        return None
    nearest = max(round(tile_size / step) * step, smallest)
    if tile_size != nearest:
        raise ValueError(
            f"tile_size is {tile_size} px; it must be 0 (automatic) or a multiple of {step} from "
            f"{smallest} on; nearest: {nearest}"
        )
    return Tiling.square(tile_size // SPATIAL_STRIDE)


def step_bytes(vae: StreamedVAE, decode: bool, size: tuple[int, int]) -> int:
    """What the device needs for a step of height x width latents, untiled."""
    return _step(vae, decode, size).needed


def _step(vae: StreamedVAE, decode: bool, size: tuple[int, int]) -> StepMemory:
    memory = decode_memory if decode else encode_memory
    itemsize = comfy.model_management.dtype_size(vae.vae_dtype)
    height, width = (side * SPATIAL_STRIDE for side in size)
    return memory(vae.first_stage_model, height, width, itemsize)


def tile_bytes(vae: StreamedVAE, decode: bool, size: tuple[int, int], tiling: Tiling) -> int:
    """What the device needs for a step of one tile; a CPU holds the other tiles' caches, too."""
    rows, columns = tiling.rows.spans(size[0]), tiling.columns.spans(size[1])
    step = _step(vae, decode, (rows[0][1], columns[0][1]))
    need = step.needed
    if vae.device.type == "cpu":
        need += step.cache * len(rows) * len(columns)
    return need


def choose_tiling(
    vae: StreamedVAE, decode: bool, size: tuple[int, int], free: int
) -> Tiling | None:
    """None where a step of height x width latents fits into free bytes, else the fewest tiles.

    The smallest tiles where none fit.
    """
    if step_bytes(vae, decode, size) <= free:
        return None
    for tiling in tilings(*size):
        if tile_bytes(vae, decode, size, tiling) <= free:
            return tiling
    return Tiling.square(SMALLEST)


def disk_folder() -> Path:
    """Where decoding keeps what is not in RAM."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def find_disk_way(vae: StreamedVAE, size: tuple[int, int]) -> Way | None:
    """How to decode (h, w) latents by way of the disk, where on a CPU a step takes much of RAM."""
    step = step_bytes(vae, True, size)
    if vae.device.type != "cpu" or step <= MOST:
        return None
    itemsize = comfy.model_management.dtype_size(vae.vae_dtype)
    way = find_way(vae.first_stage_model, size, itemsize, MOST)
    with contextlib.suppress(OSError):  # then decoding says so
        if shutil.disk_usage(disk_folder()).free < way.disk:
            LOG.info("VAE decode: the disk has no room for %.1f GB.", way.disk / GB)
            return None
    return way if way.memory < step else None


def describe_tiling(tiling: Tiling) -> str:
    return f"{tiling.columns.size * SPATIAL_STRIDE} x {tiling.rows.size * SPATIAL_STRIDE} px"


class Passage:
    """Latents (1, C, F, h, w) or frames on their way through the VAE, in order.

    size: (h, w) in latents. asked: the tiles, where not automatic. `done` counts the frames or
    latents that have come out: where memory does not suffice, the way begins again in tiles, and
    what has come out before is not handed out twice.
    """

    decode: bool

    def __init__(self, vae: StreamedVAE, size: tuple[int, int], asked: Tiling | None) -> None:
        self.vae, self.size, self.asked = vae, size, asked
        self.done = 0

    def parts(self, block: int) -> Iterator[Tensor]:
        """What goes in, (1, ., n, H, W): so much of it as makes `block` latents at a time."""
        raise NotImplementedError

    def finish(self, coded: Tensor) -> Tensor:
        """What has come out (1, ., n, H, W) as it is handed out."""
        raise NotImplementedError

    def run(self) -> Iterator[Tensor]:
        """All that comes out, part by part; untiled where that fits, else in tiles.

        Raises the error of missing memory, with `WITHOUT_ROOM`, where tiles do not fit either.
        """
        tiling = self.load()
        if tiling is None:
            try:
                yield from self._push_all(self._open(None), 1)
                return
            except Exception as error:
                if not lacks_memory(error):
                    raise
                tiling = Tiling(Side.of(self.size[0]), Side.of(self.size[1])).halve()
            # Outside of the except block, which would keep the failed stream's tensors alive.
            _say_split(tiling)
        with explain_lack(str(self), WITHOUT_ROOM):
            yield from self._push_all(self._open(tiling), BLOCK)

    def load(self) -> Tiling | None:
        """Load the VAE with as much room as a step needs; the tiles for what room there is."""
        asked, size = self.asked, self.size
        need = step_bytes(self.vae, self.decode, size)
        if asked is not None:
            need = tile_bytes(self.vae, self.decode, size, asked)
        comfy.model_management.load_models_gpu([self.vae.patcher], memory_required=need)
        if asked is not None:
            whole = asked.rows.size >= size[0] and asked.columns.size >= size[1]
            return None if whole else asked
        free = self.vae.patcher.get_free_memory(self.vae.device)
        tiling = choose_tiling(self.vae, self.decode, size, free)
        if tiling is not None:
            tiles, numbers = describe_tiling(tiling), (need / GB, free / GB)
            LOG.info(
                "%s needs %.1f GB and %.1f GB are free: in tiles of %s.", self, *numbers, tiles
            )
        return tiling

    def _open(self, tiling: Tiling | None) -> Stream:
        """A stream at its start: in tiles, or untiled for None."""
        model = self.vae.first_stage_model
        if tiling is None:
            return model.decode_stream() if self.decode else model.encode_stream()
        tiled = TiledDecodeStream if self.decode else TiledEncodeStream
        return tiled(model, tiling, self.size, self.vae.device, _say_split, lacks_memory, pin)

    def _push_all(self, stream: Stream, block: int) -> Iterator[Tensor]:
        # A tiled stream takes its input, and keeps its caches, in the machine's memory.
        home = torch.device("cpu") if isinstance(stream, TiledStream) else self.vae.device
        skip = self.done  # what a stream before this one has handed out
        for part in self.parts(block):
            comfy.model_management.throw_exception_if_processing_interrupted()
            coded = stream.push(part.to(home, self.vae.vae_dtype))
            coded, skip = coded[:, :, skip:], max(skip - coded.shape[2], 0)
            if coded.shape[2]:
                self.done += coded.shape[2]
                yield self.finish(coded)

    def __str__(self) -> str:
        height, width = (side * SPATIAL_STRIDE for side in self.size)
        return f"VAE {'decode' if self.decode else 'encode'} of {width} x {height} px"


def pin(block: Tensor) -> Callable[[], object] | None:
    """Pin a block of RAM, if what the host allows itself has room for it; returns the way back."""
    management = comfy.model_management
    if management.pin_memory(block):
        return functools.partial(management.unpin_memory, block)
    return None


def _say_split(tiling: Tiling) -> None:
    LOG.warning("VAE: out of memory; going on in tiles of %s.", describe_tiling(tiling))
    comfy.model_management.soft_empty_cache()


class Decoding(Passage):
    """Latents (1, C, F, h, w) -> frames (n, H, W, 3) in 0..1, float32.

    convert: makes raw latents of them, position by position.
    """

    decode = True

    def __init__(
        self, vae: StreamedVAE, latents: Tensor, asked: Tiling | None, convert: Convert
    ) -> None:
        super().__init__(vae, (latents.shape[3], latents.shape[4]), asked)
        self.latents, self.convert = latents, convert

    def run(self) -> Iterator[Tensor]:
        way = None if self.asked else find_disk_way(self.vae, self.size)
        if way is not None:
            try:
                yield from self._run_on_disk(way)
                return
            except OSError as error:
                why = error.strerror or error
                LOG.warning("%s: the disk cannot be used (%s); going on in RAM.", self, why)
        yield from super().run()

    def _run_on_disk(self, way: Way) -> Iterator[Tensor]:
        """All frames, with little in RAM: see `on_disk`."""
        management = comfy.model_management
        management.load_models_gpu([self.vae.patcher], memory_required=way.memory)
        sizes = (step_bytes(self.vae, True, self.size) / GB, way.memory / GB, way.disk / GB)
        LOG.info(
            "%s on the CPU: a step would take %.1f GB of RAM. With %.1f GB of it and %.1f GB of "
            "the disk the frames are the same, a little later.",
            self,
            *sizes,
        )
        place = self.vae.device, self.vae.vae_dtype
        frames = decode_on_disk(
            self.vae.first_stage_model,
            self.latents,
            way.tiling,
            disk_folder(),
            lambda latents: self.convert(latents).to(*place),
            management.throw_exception_if_processing_interrupted,
        )
        with explain_lack(str(self), WITHOUT_ROOM):
            for coded in frames:
                self.done += coded.shape[2]
                yield self.finish(coded)

    def parts(self, block: int) -> Iterator[Tensor]:
        return map(self.convert, self.latents.split(block, dim=2))

    def finish(self, coded: Tensor) -> Tensor:
        coded = coded.to(self.vae.output_device, torch.float32, copy=True)
        return self.vae.process_output(coded)[0].movedim(0, -1)


class Encoding(Passage):
    """Frames (T, H, W, 3) in 0..1 -> raw latents (1, C, f, h, w), float32 on the CPU.

    Where T is not 4k + 1, the last latent is filled up with the last frame.
    """

    decode = False

    def __init__(self, vae: StreamedVAE, frames: Tensor, asked: Tiling | None) -> None:
        height, width = (side // SPATIAL_STRIDE for side in frames.shape[1:3])
        super().__init__(vae, (height, width), asked)
        self.frames = frames

    def parts(self, block: int) -> Iterator[Tensor]:
        for start in range(0, latent_length(len(self.frames)), block):
            part = self.frames[frame_length(start) : frame_length(start + block)]
            missing = -(len(part) - (start == 0)) % TEMPORAL_STRIDE
            if missing:
                part = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)])
            yield self.vae.process_input(part.clamp(0, 1).movedim(-1, 0)[None])  # (1, 3, n, H, W)

    def finish(self, coded: Tensor) -> Tensor:
        return coded.to("cpu", torch.float32)


def decode_latents(
    vae: StreamedVAE,
    latents: Tensor,
    asked: Tiling | None = None,
    convert: Convert = lambda latents: latents,
) -> Iterator[Tensor]:
    """Frames (n, H, W, 3) in 0..1, float32, of latents (1, C, F, h, w) in order.

    asked: the tiles, where not automatic. convert: makes raw latents of them, a few at a time.
    """
    vae.first_stage_model.decode_stream().check(latents)
    return Decoding(vae, latents, asked, convert).run()


def encode_frames(
    vae: StreamedVAE, frames: Tensor, asked: Tiling | None = None
) -> Iterator[Tensor]:
    """Raw latents (1, C, f, h, w), float32 on the CPU, of frames (T, H, W, 3) in 0..1 in order."""
    return Encoding(vae, frames, asked).run()
