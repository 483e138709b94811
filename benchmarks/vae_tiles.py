"""How near the VAE's tiles are to untiled, ours and ComfyUI's, on the toy set's trained VAE.

python benchmarks/vae_tiles.py COMFYUI [--picture FILE.png]

Pictures of many toy scenes side by side, nine frames. Errors are root mean squares against the same
VAE untiled: frames in 0..1, latents in their standard deviations. The picture shows one frame
untiled, in our tiles, in ComfyUI's, and our difference.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys

import numpy as np
import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from skyreels_model.files import checkpoint  # noqa: E402
from skyreels_model.vae import VideoVAE  # noqa: E402
from skyreels_model.vae.tiles import Side, TiledDecodeStream, TiledEncodeStream, Tiling, count_coded  # noqa: E402
from toy.training.vae import clips  # noqa: E402

WEIGHTS = ROOT / "toy" / "weights" / "vae" / "toy"
SIZES = ((64, 96), (96, 128), (128, 192))  # px
TILES = (8, 12, 16)  # latents


def toy_vae() -> VideoVAE:
    state = checkpoint.read(min(WEIGHTS.iterdir())).tensors
    vae = VideoVAE.from_state_dict(state)
    vae.load_state_dict(state)
    return vae.eval().requires_grad_(False)


def frames(height: int, width: int) -> Tensor:
    """(1, 3, 9, height, width) in -1..1"""
    rng = np.random.default_rng(5)
    rows = [
        torch.cat([clips(rng, 1, 9)[0] for _ in range(width // 32)], dim=4)
        for _ in range(height // 32)
    ]
    return torch.cat(rows, dim=3)


def core_tiles(vae: VideoVAE, x: Tensor, size: int, overlap: int, decode: bool) -> Tensor:
    """What ComfyUI's VAE Decode (Tiled) and VAE Encode (Tiled) do, as comfy/sd.py does."""
    from comfy.utils import tiled_scale_multidim

    if decode:
        return tiled_scale_multidim(
            x,
            vae.decode,
            tile=(999, size, size),
            overlap=(1, overlap, overlap),
            upscale_amount=(lambda latents: max(0, latents * 4 - 3), 8, 8),
            out_channels=3,
            index_formulas=(4, 8, 8),
        )
    return tiled_scale_multidim(
        x,
        vae.encode,
        tile=(9999, size * 8, size * 8),
        overlap=(1, overlap * 8, overlap * 8),
        upscale_amount=(lambda count: max(0, math.floor((count + 3) / 4)), 8, 8),
        out_channels=vae.z_dim,
        downscale=True,
        index_formulas=(4, 8, 8),
    )


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


@torch.inference_mode()
def compare(vae: VideoVAE, height: int, width: int, size: int) -> list[Tensor]:
    x, side = frames(height, width), Side.of(size)
    z = vae.encode(x)
    whole = vae.decode(z).clamp(-1, 1)
    place = (height // 8, width // 8)
    ours = TiledDecodeStream(vae, Tiling.square(size), place).push(z).clamp(-1, 1)
    core = core_tiles(vae, z, size, side.overlap, decode=True).clamp(-1, 1)
    our_z = TiledEncodeStream(vae, Tiling.square(size), place).push(x)
    core_z = core_tiles(vae, x, size, side.overlap, decode=False)
    share = size * size / place[0] / place[1]
    more = count_coded(Tiling.square(size), *place) / place[0] / place[1]
    print(
        f"| {width} x {height} | {8 * size}, {8 * side.overlap} | {min(share, 1):.2f} | {more:.2f} "
        f"| {rms(ours - whole) / 2:.4f} | {rms(core - whole) / 2:.4f} "
        f"| {rms(our_z - z) / z.std():.4f} | {rms(core_z - z) / z.std():.4f} |",
        flush=True,
    )
    return [whole, ours, core, (ours - whole).abs() * 2 - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host", type=pathlib.Path, help="a ComfyUI source tree")
    parser.add_argument("--picture", type=pathlib.Path)
    options = parser.parse_args()
    # The host reads its options from there.
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, str(options.host.resolve()))
    vae = toy_vae()
    print("| picture | tile, overlap | its share | coded | frames | ComfyUI | latents | ComfyUI |")
    print("|---|---|---|---|---|---|---|---|")
    for height, width in SIZES:
        for size in (size for size in TILES if 8 * size < max(height, width)):
            made = compare(vae, height, width, size)
            if options.picture and (height, size) == (128, 12):
                from PIL import Image

                stack = torch.cat([film[0, :, -1] for film in made], dim=1)  # (3, 4 H, W)
                pixels = ((stack + 1) * 127.5).round().byte().movedim(0, -1).numpy()
                Image.fromarray(pixels).save(options.picture)


if __name__ == "__main__":
    main()
