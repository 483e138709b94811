"""Our transformer against diffusers' SkyReelsV2Transformer3DModel: equal weights, equal inputs.

python benchmarks/dit_forward.py [--pairs 5] [--repeats 3] [--only 14B]

Each measurement is a fresh process: it loads the same weights, warms up on one small window, then
times forwards. Memory is by how much the resident size peaks above what it was before (Linux only),
that is, what a forward needs beyond the weights. Both run in turn, A B A B; the ratio is taken
pair by pair and its median is printed, with the largest difference of the outputs.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.key_maps import transformer_key_to_original  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402


@dataclass(frozen=True)
class Case:
    """Latent size (frames, height, width) at a published width, few layers, float32."""

    name: str
    dim: int
    ffn_dim: int
    layers: int
    frames: int
    height: int
    width: int
    per_frame: bool


CASES = (
    Case("1.3B width, one timestep", 1536, 8960, 2, 5, 16, 30, False),
    Case("1.3B width, per-frame", 1536, 8960, 2, 5, 16, 30, True),
    Case("1.3B width, longer, per-frame", 1536, 8960, 2, 13, 24, 40, True),
    Case("14B width, per-frame", 5120, 13824, 1, 5, 16, 30, True),
)

Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def build(case: Case, ours: bool) -> Forward:
    """The forward of one of the two, with weights drawn from one seed in diffusers' names."""
    import diffusers

    with torch.device("meta"):
        theirs = diffusers.SkyReelsV2Transformer3DModel(
            num_attention_heads=case.dim // 128,
            attention_head_dim=128,
            ffn_dim=case.ffn_dim,
            num_layers=case.layers,
        )
    generator = torch.Generator().manual_seed(0)
    state = {
        key: torch.empty(value.shape).normal_(std=0.02, generator=generator)
        for key, value in theirs.state_dict().items()
    }
    if not ours:
        # Its rotary tables are buffers outside of the state dict, lost on the meta device.
        theirs = type(theirs).from_config(theirs.config)
        theirs.load_state_dict(state, assign=True)
        return lambda x, t, context: theirs(
            x, t, context, enable_diffusion_forcing=t.ndim == 2, return_dict=False
        )[0]
    original = {transformer_key_to_original(key): value for key, value in state.items()}
    model = SkyReelsModel(ModelConfig.from_state_dict(original), device="meta")
    model.load_state_dict(original, assign=True)
    return model


@torch.inference_mode()
def measure(case: Case, ours: bool, repeats: int) -> dict[str, object]:
    forward = build(case, ours)
    generator = torch.Generator().manual_seed(1)
    context = torch.randn(1, 512, 4096, generator=generator)

    def inputs(frames: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(1, 16, frames, height, width, generator=generator)
        t = torch.arange(frames)[None] * 50 + 100
        return x, t if case.per_frame else t[0, :1]

    forward(*inputs(1, 4, 4), context)
    before = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    x, t = inputs(case.frames, case.height, case.width)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = forward(x, t, context)
        seconds.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(seconds),
        "bytes": resident("VmHWM") - before,
        "sample": out.flatten()[:: max(1, out.numel() // 500)].tolist(),
    }


def resident(field: str) -> int:
    """Bytes of the process in memory: now (VmRSS) or at most since the reset (VmHWM)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_fresh_process(case: Case, ours: bool, repeats: int) -> dict[str, object]:
    arguments = [json.dumps(asdict(case)), "ours" if ours else "diffusers", str(repeats)]
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def difference(a: dict[str, object], b: dict[str, object]) -> float:
    x, y = torch.tensor(a["sample"]), torch.tensor(b["sample"])
    return float((x - y).norm() / y.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        case, which, repeats = options.child
        result = measure(Case(**json.loads(case)), which == "ours", int(repeats))
        print(json.dumps(result))
        return
    print("| case | tokens | time, ours | time ratio | memory, ours | memory ratio | difference |")
    print("|---|---|---|---|---|---|---|")
    for case in (case for case in CASES if options.only in case.name):
        pairs = [
            [in_fresh_process(case, ours, options.repeats) for ours in (True, False)]
            for _ in range(options.pairs)
        ]
        times = statistics.median(a["seconds"] / b["seconds"] for a, b in pairs)
        memory = statistics.median(a["bytes"] / b["bytes"] for a, b in pairs)
        tokens = case.frames * case.height * case.width // 4
        print(
            f"| {case.name} | {tokens} | {statistics.median(a['seconds'] for a, _ in pairs):.2f} s "
            f"| {times:.2f} | {statistics.median(a['bytes'] for a, _ in pairs) / 2**20:.0f} MiB "
            f"| {memory:.2f} | {max(difference(a, b) for a, b in pairs):.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
