"""What a forward of the transformer needs: the estimate against three other instruments.

    python benchmarks/memory.py

Against what is alive in tensors at full size (computed on no device), and, for small forwards that
really run, against what PyTorch's CPU allocator hands out and by how much the process's resident
memory peaks (Linux only; with the workspaces of the libraries in it). On a card the same figures,
and seconds a row, are from `benchmarks/gpu.py --only 1.3B 14B`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys

import torch

if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).resolve().parent))

import rivals  # noqa: E402

from devtools.live_bytes import allocated_peak, forward_peak  # noqa: E402
from skyreels_model.model.memory import forward_bytes, weights_bytes
from toy.random_weights import PUBLISHED  # noqa: E402

SIZES = {"540P": (25, 68, 120), "720P": (31, 90, 160)}  # latents of 97 and of 121 frames
SMALL = ((1, 16, 30), (3, 30, 52), (7, 34, 60))


def full_size() -> None:
    print("Alive in tensors at the peak of a forward at full size (bf16, nothing computed)\n")
    print("| model | size | batch | weights | beyond them | estimate / alive |")
    print("|---|---|---|---|---|---|")
    for name, (label, size), batch in itertools.product(
        ("DF-1.3B-540P", "DF-14B-540P", "I2V-14B-540P"), SIZES.items(), (1, 2)
    ):
        config = PUBLISHED[name]
        # Every block needs the same, one after the other.
        alive = forward_peak(dataclasses.replace(config, num_layers=2), batch, size, torch.bfloat16)
        estimate = forward_bytes(config, batch, *size, itemsize=2)
        print(
            f"| {name.removesuffix('-540P')} | {label} | {batch} "
            f"| {weights_bytes(config, 2) / 1e9:.2f} GB | {alive / 1e9:.2f} GB "
            f"| {estimate / alive:.3f} |"
        )


def small_sizes() -> None:
    print("\nTaken by forwards that ran on this processor (1.3B width, one block)\n")
    print("| latents | batch | dtype | handed out | estimate / it | resident | estimate / it |")
    print("|---|---|---|---|---|---|---|")
    # Memory that is freed goes back at once, or the next peak would hide in what was kept.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for dtype, size, batch in itertools.product(("float32", "bfloat16"), SMALL, (1, 2)):
        command = [sys.executable, __file__, "--small", json.dumps([dtype, size, batch])]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        figures = json.loads(done.stdout.splitlines()[-1])
        estimate = figures.pop("estimate")
        columns = (f"{taken / 1e6:.1f} MB | {estimate / taken:.3f}" for taken in figures.values())
        print(f"| {' x '.join(map(str, size))} | {batch} | {dtype} | {' | '.join(columns)} |")


@torch.no_grad()
def measure_small(dtype: torch.dtype, size: tuple[int, int, int], batch: int) -> dict[str, int]:
    """Bytes of a forward by the allocator's record, by the process's resident peak, estimated."""
    config = dataclasses.replace(PUBLISHED["DF-1.3B-540P"], num_layers=1)
    forward = rivals.build("ours", config, dtype)
    x = torch.randn(batch, 16, *size, dtype=dtype)
    timesteps = torch.linspace(999, 100, size[0]).expand(batch, -1)
    text = torch.randn(batch, 512, config.text_dim, dtype=dtype)
    forward(x[..., :4, :4].contiguous(), timesteps, text)
    before = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    forward(x, timesteps, text)
    peak = resident("VmHWM") - before
    handed_out = allocated_peak(lambda: forward(x, timesteps, text))
    estimate = forward_bytes(config, batch, *size, dtype.itemsize)
    return {"handed out": handed_out, "resident": peak, "estimate": estimate}


def resident(field: str) -> int:
    """Bytes of the process in memory: now (VmRSS) or at most since the reset (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.small:
        dtype, size, batch = json.loads(options.small)
        print(json.dumps(measure_small(getattr(torch, dtype), tuple(size), batch)))
        return
    full_size()
    small_sizes()


if __name__ == "__main__":
    main()
