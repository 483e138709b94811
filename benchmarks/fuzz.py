"""Thousands of random wrong inputs for every node, in a real ComfyUI in this process.

    python3 benchmarks/fuzz.py --comfyui COMFYUI --cases 2000 --seed 1

Prints how many were refused clearly, made, unclear or nonsense, and every case that is unclear,
nonsense, slow (10 s) or large (1 GB), or after which the working graph makes another film. Then it
ends with 1. A process that dies has printed which case it was at.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import importlib.util
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SLOW, HUNG = 10, 120  # seconds
LARGE = 1  # GB of memory that one case took more than all before it
INTACT_AFTER = 50  # cases


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--show", action="append", default=[], help="also list cases of a kind: made, refused"
    )
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
    _register("tiny_words", ROOT / "tests" / "tiny_words")
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
    from tiny_words import write_model

    words = write_model(work / "models" / "text_encoders" / "tiny words", "qwen2")
    return fuzzing.Bench(
        nodes.NODE_CLASS_MAPPINGS,
        probe,
        inprocess.execute,
        InvalidPrompt,
        "small.safetensors",
        f"tiny words/{words.name}",
    )


def main() -> int:
    options = _arguments()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as work:
        bench = _bench(options.comfyui, Path(work))
        for number, case in enumerate(bench.cases(options.cases, options.seed), 1):
            print(f"{number}\r", end="", file=sys.stderr, flush=True)
            verdict, faults = _judge(bench, case)
            if number % INTACT_AFTER == 0 and not bench.intact():
                faults.append("the working film is another one")
            counts.update([verdict.kind, *faults])
            if faults or verdict.kind in options.show:
                found = ", ".join([verdict.kind, *faults])
                print(f"{number} {found} {case}: {verdict.words}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    return 1 if set(counts) - {"made", "refused"} else 0


def _judge(bench: Any, case: Any) -> tuple[Any, list[str]]:
    """A case's verdict, and the faults in it."""
    faulthandler.dump_traceback_later(HUNG, exit=True)
    begin, most = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = bench.verdict(case)
    seconds = time.monotonic() - begin
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) / 1e6
    faulthandler.cancel_dump_traceback_later()
    faults = []
    if verdict.kind not in ("made", "refused"):
        faults.append("at fault")
    if seconds > SLOW:
        faults.append(f"over {SLOW} s")
    if more > LARGE:
        faults.append(f"over {LARGE} GB")
    return verdict, faults


if __name__ == "__main__":
    sys.exit(main())
