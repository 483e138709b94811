"""What sharing a forward costs where there is one rank: everything but the exchange.

    python benchmarks/shared_overhead.py [--frames 9] [--width 416] [--height 256] [--runs 9]

Two blocks of the 1.3B transformer on random weights, both ways in turn, medians of processor time.
A real forward has 15 times as many blocks, and the same costs before and after them.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.parallel.degrees import Degrees  # noqa: E402
from skyreels_model.parallel.forward import share_forward  # noqa: E402
from skyreels_model.parallel.team import Team  # noqa: E402

BLOCKS = 2


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--width", type=int, default=416)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--runs", type=int, default=9)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = SkyReelsModel(ModelConfig(num_layers=BLOCKS)).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.02)
    latents = (given.frames - 1) // 4 + 1
    inputs = {
        "x": torch.randn(1, 16, latents, given.height // 8, given.width // 8),
        "timestep": torch.randint(0, 1000, (1, latents)),
        "context": torch.randn(1, 512, 4096),
    }
    team = Team(lambda folder: [], Degrees())

    def share() -> torch.Tensor:
        with team.forward():
            team.begin({}, inputs)
            assert team.mesh is not None
            return share_forward(model, team.mesh, **inputs)

    ways = {"alone": lambda: model(**inputs), "shared": share}
    assert torch.equal(ways["alone"](), ways["shared"]())
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.runs):
        for name, run in ways.items():
            begin = time.process_time()
            run()
            times[name].append(time.process_time() - begin)
    alone, shared = (statistics.median(times[name]) for name in ways)
    print(f"alone {alone:.3f} s, shared by one rank {shared:.3f} s: {shared / alone - 1:+.1%}")
    team.close()


if __name__ == "__main__":
    main()
