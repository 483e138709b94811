"""Our transformer against diffusers', the reference's and ComfyUI's own: equal weights and inputs.

    python benchmarks/dit_forward.py [--reference FOLDER] [--comfyui COMFYUI] [--rounds 5]
                                     [--only 14B]

FOLDER is a source tree of SkyworkAI/SkyReels-V2, by default that of SKYREELS_V2_REFERENCE, COMFYUI
one of ComfyUI; without them there are no such rows. Each implementation has a process of its own,
in which it loads the same weights and warms up; then they run one forward each in turn, so that
whatever else the machine does meets all of them. A round's ratio is ours against the rival beside
it; the median of the rounds is printed, by the clock and by processor time. All are given 512 rows
of text, as in real films, and compute them all. "Floor" is what the matrix products and the
attention of the blocks alone take of a rival's processor time, by the same operators: no
implementation is below it. Memory is the peak of what PyTorch's allocator hands out during a
forward, so without the weights and the inputs.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).resolve().parent))

import rivals  # noqa: E402

from devtools.live_bytes import allocated_peak  # noqa: E402
from skyreels_model.config import ModelConfig


@dataclass(frozen=True)
class Case:
    """Latent size (frames, height, width), few layers, float32."""

    name: str
    config: ModelConfig
    size: tuple[int, int, int]
    per_frame: bool


NARROW = ModelConfig(num_layers=2)
SLIM = ModelConfig(dim=512, ffn_dim=2986, num_heads=4, num_layers=4)
WIDE = ModelConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=1)
CASES = (
    Case("1.3B width, one timestep", NARROW, (5, 16, 30), False),
    Case("1.3B width, per-frame", NARROW, (5, 16, 30), True),
    Case("1.3B width, longer, per-frame", NARROW, (13, 24, 40), True),
    Case("1.3B width, 540P picture", NARROW, (9, 34, 60), True),
    Case("narrow, long 540P film", SLIM, (25, 34, 60), True),
    Case("14B width, per-frame", WIDE, (5, 16, 30), True),
    Case("14B width, longer, per-frame", WIDE, (9, 16, 30), True),
)


@torch.inference_mode()
def serve(case: Case, rival: str, trees: dict[str, pathlib.Path | None]) -> None:
    """Run a forward for each line that comes in, and print its figures."""
    forward = rivals.build(rival, case.config, **trees)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(1, 512, 4096, generator=generator)

    def inputs(frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(1, 16, frames, height, width, generator=generator)
        t = torch.arange(frames)[None] * 50 + 100
        return x, t if case.per_frame else t[0, :1]

    # Another size than what is measured, or a compiler would make code for one size only.
    forward(*inputs(2, 4, 4), text)
    forward(*inputs(3, 4, 6), text)
    x, t = inputs(*case.size)
    needed = allocated_peak(lambda: forward(x, t, text))
    print("ready", flush=True)
    for _ in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        out = forward(x, t, text)
        figures = {
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "bytes": needed,
            "sample": out.flatten()[:: max(1, out.numel() // 500)].tolist(),
        }
        del out
        print(json.dumps(figures), flush=True)


class Server:
    """A rival in its own process, which runs a forward when asked."""

    def __init__(self, case: Case, rival: str, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--child", case.name, rival]
        for name in ("reference", "comfyui"):
            tree = getattr(options, name)
            command += [f"--{name}", str(tree)] if tree else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.wait_for("ready")

    def wait_for(self, beginning: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(beginning):
                return line
        raise RuntimeError(f"{' '.join(self.process.args)} ended")

    def forward(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.wait_for("{"))

    def close(self) -> None:
        self.process.communicate()


def difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    x, y = torch.tensor(a["sample"]), torch.tensor(b["sample"])
    return float((x - y).norm() / y.norm())


def compare(case: Case, names: list[str], options: argparse.Namespace) -> None:
    """Print a row for each rival."""
    servers = {name: Server(case, name, options) for name in names}
    done = [
        {name: server.forward() for name, server in servers.items()} for _ in range(options.rounds)
    ]
    for server in servers.values():
        server.close()
    peaks = {name: figures["bytes"] for name, figures in done[0].items()}
    tokens = case.size[0] * case.size[1] * case.size[2] // 4
    for rival in names[1:-1]:
        floor = statistics.median(
            turn[rivals.PRODUCTS]["cpu"] / turn[rival]["cpu"] for turn in done
        )
        ratios = {
            kind: statistics.median(turn["ours"][kind] / turn[rival][kind] for turn in done)
            for kind in ("seconds", "cpu")
        }
        seconds = statistics.median(turn["ours"]["seconds"] for turn in done)
        print(
            f"| {case.name} | {tokens} | {rival} | {seconds:.2f} s | {ratios['seconds']:.2f} "
            f"| {ratios['cpu']:.2f} | {floor:.2f} | {peaks['ours'] / 2**20:.0f} MiB "
            f"| {peaks['ours'] / peaks[rival]:.2f} "
            f"| {max(difference(turn['ours'], turn[rival]) for turn in done):.0e} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    given = os.environ.get("SKYREELS_V2_REFERENCE")
    parser.add_argument("--reference", type=pathlib.Path, default=given)
    parser.add_argument("--comfyui", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, rival = options.child
        trees = {"reference": options.reference, "host": options.comfyui}
        serve(next(case for case in CASES if case.name == name), rival, trees)
        return
    absent = {"reference": not options.reference, "core": not options.comfyui}
    names = [name for name in rivals.RIVALS if not absent.get(name)]
    names.append(rivals.PRODUCTS)
    print(
        "| case | tokens | against | time, ours | time | CPU time | floor | memory, ours | memory "
        "| diff |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for case in (case for case in CASES if options.only in case.name):
        compare(case, names, options)


if __name__ == "__main__":
    main()
