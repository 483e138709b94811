"""RAM of worker processes that hold one model: do they share the file, or multiply it?

    python3 benchmarks/worker_memory.py --comfyui COMFYUI [--layers 6]

Some blocks of the 1.3B transformer with random bf16 weights in a file, which 1, 2 and 4 workers
load as SkyReels-V2 Multi-GPU lets them. Prints all workers' RSS, which counts shared pages for
each, and PSS, which counts them once, before and after they load. Linux.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.parallel.degrees import Degrees  # noqa: E402
from skyreels_model.parallel.process import Launch  # noqa: E402
from skyreels_model.parallel.team import LOAD_LIMIT, Team  # noqa: E402

PROGRAM = ROOT / "nodes" / "host" / "multi_gpu" / "worker_main.py"
STANDINS = ROOT / "tests" / "fixtures" / "parallel" / "site"  # for packages ComfyUI wants
MB = 10**6


def launches(folder: Path, count: int) -> list[Launch]:
    variables = {**os.environ, "PYTHONPATH": str(STANDINS), "OMP_NUM_THREADS": "1"}
    command = (sys.executable, str(PROGRAM))
    return [Launch(f"worker {n}", command, folder / f"{n}.log", variables) for n in range(count)]


def read_memory(team: Team) -> tuple[float, float]:
    """RSS and PSS of all workers in MB."""
    found = {"Rss": 0, "Pss": 0}
    for worker in team.workers:
        assert worker.process is not None
        for line in Path(f"/proc/{worker.process.pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] += int(rest.split()[0]) * 1024
    return found["Rss"] / MB, found["Pss"] / MB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=6)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        model = SkyReelsModel(ModelConfig(num_layers=given.layers), dtype=torch.bfloat16)
        save_file(model.state_dict(), file)
        del model
        print(f"file: {file.stat().st_size / MB:.0f} MB")
        print("| workers | RSS before | PSS before | RSS with the model | PSS with the model |")
        print("|---|---|---|---|---|")
        for count in (1, 2, 4):
            degrees = Degrees(ring=count + 1)
            team = Team(lambda logs, count=count: launches(logs, count), degrees)
            host = {"path": [str(given.comfyui), *sys.path], "arguments": {"cpu": True}, "fast": []}
            team.start(host)
            before = read_memory(team)
            settings = ("bf16", "pytorch", "auto")
            asked = {"do": "load", "path": str(file), "settings": settings, "sharded": False}
            team.ask(asked, LOAD_LIMIT)
            cells = " | ".join(f"{value:.0f}" for value in (*before, *read_memory(team)))
            print(f"| {count} | {cells} |", flush=True)
            team.close()


if __name__ == "__main__":
    main()
