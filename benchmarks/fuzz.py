"""Thousands of random wrong inputs for every node, in a real ComfyUI in this process.

    python3 benchmarks/fuzz.py --comfyui COMFYUI --cases 2000 --seed 1

Prints how many were refused clearly, made, unclear or not finite, and every case that is unclear,
not finite or slow (10 s). A process that dies has printed which case it was at.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SLOW, HUNG = 10, 120  # seconds


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show-made", action="store_true", help="list the cases that were made")
    return parser.parse_args()


def _register(name: str, folder: Path) -> None:
    """A package of the tests under its own name, without the root on the path."""
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


def _bench(comfyui: Path, work: Path) -> Any:
    _register("devtools", ROOT / "devtools")
    _register("graphs", ROOT / "tests" / "graphs")
    from devtools import inprocess
    from devtools.prompt import InvalidPrompt

    inprocess.boot_host(comfyui, work)
    inprocess.load_pack(ROOT)
    inprocess.load_pack(ROOT / "tests" / "host" / "probe")
    import torch
    from graphs import fuzzing
    from safetensors.torch import load_file, save_file

    import nodes

    toy = ROOT / "toy/weights/diffusion_models/toy/SkyReels-V2-DF-Toy-32P/model.safetensors"
    width = load_file(toy)["blocks.0.self_attn.q.weight"].shape[0]
    key = "diffusion_model.blocks.0.self_attn.q.lora_{}.weight"
    parts = {key.format("A"): torch.full((2, width), 0.01)}
    parts[key.format("B")] = torch.full((width, 2), 0.01)
    (work / "models" / "loras").mkdir(parents=True, exist_ok=True)
    save_file(parts, work / "models" / "loras" / "small.safetensors")
    probe = next(module for name, module in sys.modules.items() if name.endswith("/host/probe"))
    return fuzzing.Bench(
        nodes.NODE_CLASS_MAPPINGS, probe, inprocess.execute, InvalidPrompt, "small.safetensors"
    )


def main() -> int:
    options = _arguments()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as work:
        bench = _bench(options.comfyui, Path(work))
        for number, case in enumerate(bench.cases(options.cases, options.seed)):
            print(f"{number}\r", end="", file=sys.stderr, flush=True)
            faulthandler.dump_traceback_later(HUNG, exit=True)
            begin = time.monotonic()
            verdict = bench.verdict(case)
            seconds = time.monotonic() - begin
            faulthandler.cancel_dump_traceback_later()
            counts[verdict.kind] += 1
            counts[f"over {SLOW} s"] += seconds > SLOW
            shown = verdict.kind in ("unclear", "not finite") or seconds > SLOW
            if shown or (options.show_made and verdict.kind == "made"):
                print(
                    f"{number} {verdict.kind} {seconds:.1f} s {case}: {verdict.words}", flush=True
                )
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
