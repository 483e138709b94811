"""Does the memory of a film grow with its length? Made into a store, then written to a file.

    python benchmarks/long_film.py [--windows 5400 --size 32] [--windows 200 --size 256 --pixels]
    python benchmarks/long_film.py --formula

A tiny transformer and VAE with random weights make windows of 25 frames that overlap by 9. Prints
for making and for writing what is resident after the first minute and at the end, by medians, and
what of it the process has in use: glibc keeps what was freed, and that part comes and goes. With
`--folder PATH` the film stays there, and what is there already is not made again. With `--formula`
frames that cost nothing are written: that is the writer alone. Linux with glibc only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "benchmarks"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))

from film_memory import FPS, resident  # noqa: E402

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout.film import Film  # noqa: E402
from skyreels_model.rollout.history import new_history  # noqa: E402
from skyreels_model.rollout.loop import denoise  # noqa: E402
from skyreels_model.rollout.noise import SeededNoise  # noqa: E402
from skyreels_model.rollout.parts import film_stretches  # noqa: E402
from skyreels_model.store.keys import window_keys  # noqa: E402
from skyreels_model.store.manifest import read_manifest, write_manifest  # noqa: E402
from skyreels_model.store.store import FilmStore, make_film  # noqa: E402
from skyreels_model.store.windows import DiskSink, decode_from_disk  # noqa: E402
from skyreels_model.vae.network import VideoVAE, denormalize_latents  # noqa: E402
from skyreels_model.video.codecs import VideoSettings  # noqa: E402
from skyreels_model.video.writer import FilmWriter  # noqa: E402

WINDOW, OVERLAP = 25, 9
FIRST = 60.0  # seconds


class Allocated(ctypes.Structure):
    """`struct mallinfo2` of glibc, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> float:
    """MB that were asked for and not freed."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = Allocated
    found = libc.mallinfo2()
    return float(found.uordblks + found.hblkhd) / 1e6


class Watch:
    """Memory in MB, by the median of the first tenth after a minute and of the last tenth."""

    def __init__(self) -> None:
        self.begin, self.seen = time.monotonic(), list[tuple[float, float]]()

    def look(self) -> None:
        now = resident()["VmRSS"], in_use()
        if time.monotonic() - self.begin < FIRST:
            self.seen.clear()
        self.seen.append(now)

    def __str__(self) -> str:
        tenth = max(len(self.seen) // 10, 1)
        told = []
        for some in zip(*self.seen, strict=True):
            first, last = (statistics.median(part) for part in (some[:tenth], some[-tenth:]))
            told.append(f"{first:.0f} | {last:.0f} | {100 * (last / first - 1):+.1f} %")
        highest = max(resident for resident, _ in self.seen)
        took = time.monotonic() - self.begin
        return " | ".join([told[0], f"{highest:.0f}", told[1], f"{took:.0f}"])


def tiny_model() -> SkyReelsModel:
    config = ModelConfig(dim=48, ffn_dim=96, num_heads=2, num_layers=1, text_dim=16, freq_dim=16)
    return draw_weights(SkyReelsModel(config))


def draw_weights(network: torch.nn.Module) -> Any:
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return network.eval()


def write_formula(frames: int, size: int) -> str:
    """A row: so many frames of soft colours are written, a second at a time."""
    ramp, watch = torch.linspace(0, 1, size)[:, None, None], Watch()
    seconds = [ramp.expand(FPS, size, size, 3) * torch.rand(3) for _ in range(7)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "film.mp4"
        with FilmWriter(path, VideoSettings("h264"), Fraction(FPS)) as writer:
            for second in range(frames // FPS):
                writer.write(seconds[second % len(seconds)])
                watch.look()
    return f"| {frames} frames of {size} x {size}, of a formula | written | {watch} |"


@torch.inference_mode()
def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--windows", type=int, default=5400)
    asked.add_argument("--size", type=int, default=32, help="width and height in px")
    asked.add_argument("--pixels", action="store_true", help="history through the VAE")
    asked.add_argument("--folder", type=pathlib.Path, help="where the film stays")
    asked.add_argument("--formula", action="store_true", help="only write frames of a formula")
    given = asked.parse_args()
    torch.manual_seed(0)
    frames = WINDOW + (given.windows - 1) * (WINDOW - OVERLAP)
    if given.formula:
        print(write_formula(frames, given.size))
        return
    model, vae = tiny_model(), draw_weights(VideoVAE(dim=2, num_res_blocks=0))
    text = torch.randn(1, 8, 16)
    history = "pixels" if given.pixels else "latents"
    size = (given.size, given.size)
    plan = FilmPlan(frames, *size, WINDOW, OVERLAP, steps=2, history=history)
    assert plan.num_windows == given.windows
    with contextlib.ExitStack() as stack:
        folder = given.folder
        if folder is None:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        film, watch = Film(plan, "euler"), Watch()
        keys = window_keys(plan, film.conditions, film.solver, lambda window: {})

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return model(x, t, text)

        def sample(film: Film) -> None:
            for _ in denoise(film, velocity, SeededNoise(1)):
                pass

        with FilmStore(folder).open(keys) as session:
            write_manifest(folder, plan, keys)
            make_film(film, sample, new_history(plan, vae), session, watch.look)
        name = f"{given.windows} windows, {frames / FPS / 60:.0f} min of {size[0]} x {size[1]}"
        print(
            "| film | work | after a minute, MB | at the end, MB | growth | at most, MB "
            "| in use after a minute, MB | at the end, MB | growth | s |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        print(f"| {name} | made | {watch} |", flush=True)

        def decode(latents: Tensor) -> Iterator[Tensor]:
            stream = vae.decode_stream()
            return (stream.push(denormalize_latents(latent)) for latent in latents.split(1, dim=2))

        watch, stored = Watch(), read_manifest(folder)
        with FilmWriter(folder / "film.mp4", VideoSettings("h264"), Fraction(FPS)) as writer:
            stretches = film_stretches(plan, stored.finished(), sink=lambda: DiskSink(folder))
            for piece in decode_from_disk(stretches, decode):
                writer.write((piece[0].movedim(0, -1).clamp(-1, 1) + 1) / 2)
                watch.look()
        assert writer.frames == frames
        print(f"| {name} | written | {watch} |", flush=True)


if __name__ == "__main__":
    main()
