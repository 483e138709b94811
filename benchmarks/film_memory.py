"""What a film takes of RAM: sampled into a store, and written to a file, at two lengths.

    python benchmarks/film_memory.py [--seconds 60 600] [--width 64 --height 64]

Random weights of a tiny VAE and a model that is a formula: what grows with a film are its latents
and frames, whatever makes them. Each length runs in a process of its own; Linux only.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from skyreels_model.files.mapped import page_out  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout.film import Film  # noqa: E402
from skyreels_model.rollout.history import history_of  # noqa: E402
from skyreels_model.rollout.loop import denoise  # noqa: E402
from skyreels_model.rollout.noise import SeededNoise  # noqa: E402
from skyreels_model.rollout.parts import decode_stretches, describe_film  # noqa: E402
from skyreels_model.store.keys import window_keys  # noqa: E402
from skyreels_model.store.store import FilmStore, make_film  # noqa: E402
from skyreels_model.store.windows import DiskSink  # noqa: E402
from skyreels_model.vae.network import VideoVAE, denormalize_latents  # noqa: E402
from skyreels_model.video.codecs import VideoSettings  # noqa: E402
from skyreels_model.video.pictures import open_writer  # noqa: E402

FPS = 24


def resident() -> dict[str, float]:
    """MB in RAM now (VmRSS), and at most since `restart_peak` (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return {name: int(found[name]) / 1000 for name in ("VmRSS", "VmHWM")}


def restart_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


@torch.inference_mode()
def measure(seconds: float, width: int, height: int, stored: bool) -> dict[str, float]:
    torch.manual_seed(0)
    vae = VideoVAE(dim=4, num_res_blocks=0).eval()
    frames = int(seconds * FPS)
    plan = FilmPlan(frames, width, height, steps=2, history="latents", prefix_noise=0)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="film_memory"))
    film = Film(plan, "euler")

    def sample(film: Film) -> None:
        list(denoise(film, lambda x, t: 0.7 * x, SeededNoise(1)))

    def decode(raw: Tensor) -> Iterator[Tensor]:
        stream = vae.decode_stream()
        return (stream.push(latent) for latent in raw.split(1, dim=2))

    history = history_of(plan, None, None)
    restart_peak()
    before = resident()["VmRSS"]
    if stored:
        keys = window_keys(plan, film.conditions, film.solver, lambda window: {})
        with FilmStore(folder).open(keys) as session:
            make_film(film, sample, history, session)
        latents, parts = describe_film(film, denormalize_latents, sink=lambda: DiskSink(folder))
    else:
        make_film(film, sample, history)
        latents, parts = describe_film(film, denormalize_latents)
    sampled = resident()["VmHWM"] - before
    restart_peak()
    before, begin = resident()["VmRSS"], time.monotonic()
    settings = VideoSettings("h264")
    with open_writer(folder / "film.mp4", settings, Fraction(FPS)) as writer:
        for number, piece in enumerate(decode_stretches(parts.stretches(latents), decode)):
            writer.write((piece[0].movedim(0, -1).clamp(-1, 1) + 1) / 2)
            if stored and number % 256 == 255:
                page_out(latents)  # as the node
    assert writer.frames == frames
    written = resident()["VmHWM"] - before
    took = time.monotonic() - begin
    whole = latents.numel() * 4 / 1e6
    return {"latents": whole, "sampling": sampled, "writing": written, "seconds": took}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--seconds", type=float, nargs="+", default=[60, 600])
    asked.add_argument("--width", type=int, default=64)
    asked.add_argument("--height", type=int, default=64)
    asked.add_argument("--one", help=argparse.SUPPRESS)
    given = asked.parse_args()
    if given.one:
        print(json.dumps(measure(**json.loads(given.one))))
        return
    print("| film | store | frames in RAM would be | latents | sampling, + MB | writing, + MB |")
    print("|---|---|---|---|---|---|")
    for stored in (False, True):
        for seconds in given.seconds:
            size = {"width": given.width, "height": given.height}
            one = json.dumps({"seconds": seconds, "stored": stored, **size})
            command = [sys.executable, __file__, "--one", one]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            frames = seconds * FPS * given.width * given.height * 12 / 1e6
            print(
                f"| {seconds:g} s of {given.width} x {given.height} | {'yes' if stored else 'no'} "
                f"| {frames:.0f} MB | {found['latents']:.1f} MB | {found['sampling']:.1f} "
                f"| {found['writing']:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
