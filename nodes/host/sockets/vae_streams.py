"""Our VAE's streams in the host: untiled where a step fits the device, else in tiles by themselves.

The frames of a film never lie on the device, and its pixels become numbers of the VAE chunk by
chunk; so the memory does not grow with the film. With tiles, their caches lie in the machine's
memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import comfy.model_management
import torch
from torch import Tensor

from ....skyreels_model.grid import TEMPORAL_STRIDE, frame_length, latent_length
from ....skyreels_model.vae.memory import StepMemory, decode_memory, encode_memory
from ....skyreels_model.vae.network import DecodeStream, EncodeStream
from ....skyreels_model.vae.tiles import (
    SMALLEST,
    Side,
    TiledDecodeStream,
    TiledEncodeStream,
    TiledStream,
    Tiling,
    tilings,
)

if TYPE_CHECKING:
    from .vae import HostVAE


LATENT = 8  # px
STEP = 4  # latents between the sizes of tiles that can be asked for
BLOCK = 8  # latents that go through a tile before the next tile
# What a convolution may take beside its live tensors, as a part of these: its input and its
# output in another layout.
SCRATCH = 0.6
LOG = logging.getLogger("skyreels_v2")
Stream = DecodeStream | EncodeStream | TiledStream


def tiling_of(tile_size: int) -> Tiling | None:
    """Tiles of so many px; None for 0. Raises ValueError for any other than 0, 64, 96, 128, …"""
    smallest, step = SMALLEST * LATENT, STEP * LATENT
    if not tile_size:
        return None
    nearest = max(round(tile_size / step) * step, smallest)
    if tile_size != nearest:
        raise ValueError(
            f"tile_size is {tile_size} px; it must be 0 (automatic) or a multiple of {step} from "
            f"{smallest} on; nearest: {nearest}"
        )
    return Tiling.square(tile_size // LATENT)


def step_bytes(vae: HostVAE, decode: bool, size: tuple[int, int]) -> int:
    """What the device needs for a step of height x width latents, untiled."""
    return _with_scratch(_step(vae, decode, size))


def _step(vae: HostVAE, decode: bool, size: tuple[int, int]) -> StepMemory:
    memory = decode_memory if decode else encode_memory
    itemsize = comfy.model_management.dtype_size(vae.vae_dtype)
    height, width = (side * LATENT for side in size)
    return memory(vae.first_stage_model, height, width, itemsize)


def _with_scratch(step: StepMemory) -> int:
    return step.cache + int(step.work * (1 + SCRATCH))


def fitting_tiling(vae: HostVAE, decode: bool, size: tuple[int, int], free: int) -> Tiling | None:
    """None where a step of height x width latents fits into free bytes, else the fewest tiles.

    The smallest tiles where none fit.
    """
    if step_bytes(vae, decode, size) <= free:
        return None
    for tiling in tilings(*size):
        if tile_bytes(vae, decode, size, tiling) <= free:
            return tiling
    return Tiling.square(SMALLEST)


def tile_bytes(vae: HostVAE, decode: bool, size: tuple[int, int], tiling: Tiling) -> int:
    """What the device needs for a step of one tile; a CPU holds the other tiles' caches, too."""
    rows, columns = tiling.rows.spans(size[0]), tiling.columns.spans(size[1])
    step = _step(vae, decode, (rows[0][1], columns[0][1]))
    need = _with_scratch(step)
    if vae.device.type == "cpu":
        need += step.cache * len(rows) * len(columns)
    return need


def make_ready(
    vae: HostVAE, decode: bool, size: tuple[int, int], asked: Tiling | None
) -> Tiling | None:
    """The VAE on the device with as much room as a step needs, and the tiles for what there is."""
    need = step_bytes(vae, decode, size)
    if asked is not None:
        need = tile_bytes(vae, decode, size, asked)
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=need)
    if asked is not None:
        whole = asked.rows.size >= size[0] and asked.columns.size >= size[1]
        return None if whole else asked
    free = vae.patcher.get_free_memory(vae.device)
    tiling = fitting_tiling(vae, decode, size, free)
    if tiling is not None:
        LOG.info(
            "VAE %s of %d x %d px needs %.1f GB and %.1f GB are free: in tiles of %s.",
            "decode" if decode else "encode",
            *(side * LATENT for side in reversed(size)),
            need / 1e9,
            free / 1e9,
            in_pixels(tiling),
        )
    return tiling


def open_stream(vae: HostVAE, decode: bool, size: tuple[int, int], tiling: Tiling | None) -> Stream:
    """A stream at its start: in tiles, or untiled for None."""
    model = vae.first_stage_model
    if tiling is None:
        stream: Stream = model.decode_stream() if decode else model.encode_stream()
        return stream
    tiled = TiledDecodeStream if decode else TiledEncodeStream
    lacks_memory = comfy.model_management.is_oom
    return tiled(model, tiling, size, vae.device, _say_split, lacks_memory)


def _home(vae: HostVAE, stream: Stream) -> torch.device:
    """Where a stream takes its input, and keeps its caches."""
    return torch.device("cpu") if isinstance(stream, TiledStream) else vae.device


def in_pixels(tiling: Tiling) -> str:
    return f"{tiling.columns.size * LATENT} x {tiling.rows.size * LATENT} px"


def _say_split(tiling: Tiling) -> None:
    LOG.warning("VAE: out of memory; going on in tiles of %s.", in_pixels(tiling))
    comfy.model_management.soft_empty_cache()


def decode_latents(
    vae: HostVAE, latents: Tensor, given: int = 0, asked: Tiling | None = None
) -> Iterator[Tensor]:
    """Frames (n, H, W, 3) in 0..1, float32, of raw latents (1, C, F, h, w) in order.

    given: how many of the latents at the start have frames that are not wanted.
    asked: the tiles, where not by themselves.
    """
    vae.first_stage_model.decode_stream().check(latents)
    shown = frame_length(given) if given else 0

    def pieces(stream: Stream, block: int) -> Iterator[Tensor]:
        nonlocal shown
        skip = shown  # what a stream before this one has shown
        for part in latents.split(block, dim=2):
            pixels = stream.push(part.to(_home(vae, stream), vae.vae_dtype))  # (1, 3, n, H, W)
            pixels, skip = pixels[:, :, skip:], max(skip - pixels.shape[2], 0)
            shown += pixels.shape[2]
            if pixels.shape[2]:
                frames = vae.process_output(pixels.to(vae.output_device, torch.float32, copy=True))
                yield frames[0].movedim(0, -1)

    yield from _untiled_or_tiled(vae, True, (latents.shape[3], latents.shape[4]), asked, pieces)


def encode_frames(vae: HostVAE, frames: Tensor, asked: Tiling | None = None) -> Iterator[Tensor]:
    """Raw latents (1, C, f, h, w), float32 on the CPU, of frames (T, H, W, 3) in 0..1 in order.

    Where T is not 4k + 1, the last latent is filled up with the last frame.
    """
    done = 0

    def pieces(stream: Stream, block: int) -> Iterator[Tensor]:
        nonlocal done
        skip = done
        for start in range(0, latent_length(len(frames)), block):
            stop = start + block
            part = frames[frame_length(start) if start else 0 : frame_length(stop)]
            lacking = -(len(part) - (start == 0)) % TEMPORAL_STRIDE
            if lacking:
                part = torch.cat([part, part[-1:].expand(lacking, -1, -1, -1)])
            x = vae.process_input(part.movedim(-1, 0)[None])  # (1, 3, n, H, W)
            latents = stream.push(x.to(_home(vae, stream), vae.vae_dtype))
            latents = latents.to("cpu", torch.float32)
            latents, skip = latents[:, :, skip:], max(skip - latents.shape[2], 0)
            done += latents.shape[2]
            yield latents

    size = frames.shape[1] // LATENT, frames.shape[2] // LATENT
    yield from _untiled_or_tiled(vae, False, size, asked, pieces)


def _untiled_or_tiled(
    vae: HostVAE,
    decode: bool,
    size: tuple[int, int],
    asked: Tiling | None,
    pieces: Callable[[Stream, int], Iterator[Tensor]],
) -> Iterator[Tensor]:
    """What `pieces` makes with a stream, and latents of a block; in tiles where untiled fails."""
    tiling = make_ready(vae, decode, size, asked)
    if tiling is None:
        try:
            yield from _interruptible(pieces(open_stream(vae, decode, size, None), 1))
            return
        except Exception as error:
            comfy.model_management.raise_non_oom(error)
            tiling = Tiling(Side.of(size[0]), Side.of(size[1])).halved()
        # Outside of the except block, which would keep the failed stream's tensors alive.
        _say_split(tiling)
    yield from _interruptible(pieces(open_stream(vae, decode, size, tiling), BLOCK))


def _interruptible(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    for piece in pieces:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield piece
