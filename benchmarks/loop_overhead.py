"""What a film's loop costs beside the model: solver, prefix noise and bookkeeping, a row at a time.

    python benchmarks/loop_overhead.py [--device cpu] [--frames 97] [--width 960] [--height 544]

The loop runs at full size with a velocity that costs nothing. Beside it one block of the 1.3B
transformer runs once on random weights, at full size; times its 30 blocks that is a forward
without its ends, so the share shown is an upper bound. On a GPU times include its work.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import Film, SeededNoise, denoise  # noqa: E402
from skyreels_model.solvers import SOLVERS  # noqa: E402

BLOCKS = 30  # of the 1.3B transformer
WIDTH, HIDDEN, HEADS, TEXT = 1536, 8960, 12, 4096


def synchronised(device: torch.device) -> float:
    """Now, with the device's work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def row_seconds(plan: FilmPlan, solver: str, device: torch.device, rows: int) -> float:
    """Seconds of a row of the loop, without the model; the first row makes the noise."""
    film = Film(plan, solver)
    velocity = torch.randn(1, 16, plan.latent_frames, *plan.latent_size, device=device)
    run = denoise(film, lambda x, t: velocity, SeededNoise(0), device)
    next(run)
    begin = synchronised(device)
    for _ in range(rows):
        next(run)
    return (synchronised(device) - begin) / rows


@torch.inference_mode()
def forward_seconds(plan: FilmPlan, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a forward's blocks: of one with another, less without any, times all of them."""
    times = []
    for layers in (0, 1):
        config = ModelConfig(
            dim=WIDTH, ffn_dim=HIDDEN, num_heads=HEADS, num_layers=layers, text_dim=TEXT
        )
        model = SkyReelsModel(config, dtype=dtype, device=device).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        x = torch.randn(1, 16, plan.latent_frames, *plan.latent_size, device=device, dtype=dtype)
        t = torch.full((1, plan.latent_frames), 500, device=device)
        text = torch.randn(1, 512, TEXT, device=device, dtype=dtype)
        begin = synchronised(device)
        model(x, t, text)
        times.append(synchronised(device) - begin)
    return (times[1] - times[0]) * BLOCKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for name, default in (("frames", 97), ("width", 960), ("height", 544), ("rows", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    plan = FilmPlan(
        num_frames=options.frames, window=options.frames, width=options.width,
        height=options.height, ar_step=5,
    )  # fmt: skip
    size = f"{plan.latent_frames} x {plan.latent_size[0]} x {plan.latent_size[1]} latents"
    forward = forward_seconds(plan, device, dtype)
    print(f"{device}, {size}: forward of 1.3B, {str(dtype)[6:]}: {forward:.2f} s")
    for solver in SOLVERS:
        seconds = row_seconds(plan, solver, device, options.rows)
        print(f"{solver:18} {1000 * seconds:8.2f} ms a row, {100 * seconds / forward:.4f} %")


if __name__ == "__main__":
    main()
