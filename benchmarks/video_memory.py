"""What SkyReels-V2 Film to Video takes of RAM at 544 x 960, by the length of the film.

    python benchmarks/video_memory.py --comfyui COMFYUI [--seconds 5]
    python benchmarks/video_memory.py --comfyui COMFYUI --seconds 60 --enlarge
    python benchmarks/video_memory.py --comfyui COMFYUI --seconds 0.2 --wide
    python benchmarks/video_memory.py --published [--latents 2 4 6]
    python benchmarks/video_memory.py --on-disk 0 1 tile [--dtype float32]

The first runs the node in a ComfyUI, with a VAE of random weights that is two channels wide, and
coding at full size: what is added to the process at most. With `--enlarge` latents become frames by
enlarging, which is quick enough for a film of a minute. With `--wide` the VAE has its published
width, in float32, and takes minutes for each latent. The fourth is what that VAE itself needs, in
live tensors on PyTorch's meta device, which computes nothing. The last is
what a CPU takes for one latent of it by way of the disk: the stages of decoding and the largest
tile, one by one, from pasts of random numbers. Linux only.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from film_memory import FPS, resident, restart_peak  # noqa: E402

from devtools import inprocess  # noqa: E402
from devtools.live_bytes import LiveBytes  # noqa: E402
from skyreels_model.grid import latent_length  # noqa: E402
from skyreels_model.vae.layers import Decoder  # noqa: E402
from skyreels_model.vae.network import VideoVAE  # noqa: E402
from skyreels_model.vae.on_disk import Spill, find_way, make_tiles  # noqa: E402
from skyreels_model.vae.past import Past  # noqa: E402

HEIGHT, WIDTH = 544, 960
MOST = 1_600_000_000  # bytes, as `nodes/host/sockets/vae_streams.py` has it
SIZE = (HEIGHT // 8, WIDTH // 8)
CODING = {"codec": "h264", "quality": 80, "bit_depth": "8", "fps": 0.0}


def smooth_latents(count: int) -> torch.Tensor:
    """(1, 16, F, h, w), alike from frame to frame, as those of a film are."""
    torch.manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.randn(1, 16, 9, 15), SIZE, mode="bilinear")
    drift = torch.linspace(0, 1, count)[:, None, None]  # (F, 1, 1)
    return picture[:, :, None] + drift


class Enlarging:
    """A stream in place of the VAE's: three channels of latents as they are, enlarged."""

    def __init__(self) -> None:
        self.frames = 1

    def check(self, latents: torch.Tensor) -> None: ...

    def push(self, latent: torch.Tensor) -> torch.Tensor:
        """(1, 16, 1, h, w) -> (1, 3, 4, 8h, 8w), or one frame at first."""
        picture = torch.nn.functional.interpolate(latent[:, :3, 0], scale_factor=8, mode="bilinear")
        count, self.frames = self.frames, 4
        return picture[:, :, None].repeat(1, 1, count, 1, 1)


def fill(vae: VideoVAE) -> VideoVAE:
    """Random weights that keep numbers at their size."""
    for weight in vae.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return vae.eval()


@torch.inference_mode()
def measure(seconds: float, enlarge: bool, wide: bool) -> str:
    """A row: the film, its latents, what is resident at most beyond before, and how long."""
    import nodes  # of ComfyUI

    (name,) = (n for n in sys.modules if "/" in n and n.endswith(".nodes.host.sockets.vae"))
    torch.manual_seed(0)
    ours = sys.modules[name]  # the pack as ComfyUI has it
    shape = {} if wide else {"dim": 2, "num_res_blocks": 0}
    vae = ours.HostVAE(fill(ours.VideoVAE(**shape)), torch.float32, True)
    if enlarge:
        vae.first_stage_model.decode_stream = Enlarging
    samples = smooth_latents(latent_length(round(seconds * FPS)))
    restart_peak()
    before, begin = resident()["VmRSS"], time.monotonic()
    node = nodes.NODE_CLASS_MAPPINGS["SkyReelsV2FilmToVideo"]
    made = node.execute(vae, "film", samples={"samples": samples}, **CODING)
    peak, took = resident()["VmHWM"] - before, time.monotonic() - begin
    report = made.result[2].split(": ", 1)[1]
    return f"| {report} | {samples.nbytes / 1e6:.0f} | {peak:.0f} | {took:.0f} |"


def published(count: int, dtype: torch.dtype) -> float:
    """GB of live tensors, at most, beside weights and latents, while so many are decoded."""
    vae = VideoVAE(device="meta", dtype=dtype)
    latents = torch.empty(1, 16, count, *SIZE, device="meta", dtype=dtype)
    with torch.no_grad(), LiveBytes() as live:
        stream = vae.decode_stream()
        for latent in latents.split(1, dim=2):
            stream.push(latent)
    return live.peak / 1e9


@torch.inference_mode()
def on_disk(stage: str, dtype: torch.dtype) -> str:
    """A row: what a stage of decoding, by its number, or the largest tile adds at most, in MB."""
    plan, vae = VideoVAE(device="meta", dtype=dtype), fill(VideoVAE(dtype=dtype))
    way = find_way(vae, SIZE, dtype.itemsize, MOST)
    given, runs = [torch.empty(1, 16, 1, *SIZE, device="meta", dtype=dtype)], []
    for start, stop in plan.decoder.stages:
        runs.append(functools.partial(Decoder.coarse, start=start, stop=stop))
        given.append(runs[-1](plan.decoder, given[-1], Past([])))
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        tiles = make_tiles(way.tiling, SIZE, place)
        number = len(runs) if stage == "tile" else int(stage)
        x = given[number]
        if stage == "tile":
            cuts = [tile.cut(x, x.shape[3] // SIZE[0]) for tile in tiles]
            x = max(cuts, key=torch.Tensor.numel)
        run, cache, past = (
            [*runs, Decoder.fine][number],
            list[torch.Tensor](),
            Spill(pathlib.Path(folder)),
        )
        run(plan.decoder, x, Past(cache))
        for one in cache:
            past.add(torch.randn(one.shape, dtype=dtype))
        # A later step has twice as many frames once time has been doubled.
        x = torch.randn(1, x.shape[1], 1 if number == 0 else 2, *x.shape[3:], dtype=dtype)
        restart_peak()
        before, begin = resident()["VmRSS"], time.monotonic()
        with past.lend(last=False) as lent:
            past.add(run(vae.decoder, x, Past(lent)))
        peak, took = resident()["VmHWM"] - before, time.monotonic() - begin
    return f"| {stage}, of {len(tiles)} tiles | {way.memory / 1e6:.0f} | {peak:.0f} | {took:.0f} |"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--comfyui", type=pathlib.Path, help="a ComfyUI source tree")
    asked.add_argument("--seconds", type=float, nargs="+", default=[5])
    asked.add_argument("--enlarge", action="store_true", help="in place of the VAE")
    asked.add_argument("--wide", action="store_true", help="the VAE at its published width")
    asked.add_argument("--published", action="store_true", help="the VAE's own need")
    asked.add_argument("--latents", type=int, nargs="+", default=[2, 4, 6])
    asked.add_argument("--on-disk", nargs="+", help="0, 1, tile: the VAE's stages on a CPU")
    asked.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    given = asked.parse_args()
    if given.on_disk:
        print("| stage | told, MB | added at most, MB | s |\n|---|---|---|---|")
        for stage in given.on_disk:
            print(on_disk(stage, getattr(torch, given.dtype)), flush=True)
        return
    if given.published:
        print("| latents | bfloat16, GB | float32, GB |\n|---|---|---|")
        for count in given.latents:
            needs = [published(count, dtype) for dtype in (torch.bfloat16, torch.float32)]
            print(f"| {count} | {needs[0]:.2f} | {needs[1]:.2f} |", flush=True)
        return
    if given.comfyui is None:
        asked.error("--comfyui names a ComfyUI source tree")
    with tempfile.TemporaryDirectory() as base:
        inprocess.boot_host(given.comfyui, pathlib.Path(base))
        inprocess.load_pack(ROOT)
        print("| film | latents, MB | added at most, MB | s |\n|---|---|---|---|")
        for seconds in given.seconds:
            print(measure(seconds, given.enlarge, given.wide), flush=True)


if __name__ == "__main__":
    main()
