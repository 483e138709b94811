"""How long the page waits for the plan of ten minutes of film: the pack's answer, in this process.

    python3 benchmarks/live_plan.py --comfyui COMFYUI [--profile CASE]

Prints for each shape of film the milliseconds by the clock and of processor (the least and the
median of several turns of one number, each of which is another film), and the bytes of the answer.
What the page then does, in milliseconds, says `benchmarks/live_page.py`.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import json
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 14400
ASYNC = {"ar_step": 5, "block_size": 1}
SHOTS = [{"seconds": 1.2, "cut": shot % 3 == 0, "ease": 8} for shot in range(500)]
TEXT = "\n".join(
    f"{1.2 * shot:.1f}s{' cut' * (shot % 3 == 0)}: {'a long prompt of this shot ' * 10}"
    for shot in range(500)
)
KEYS = ", ".join(str(second) for second in range(1, 600, 2))
CASES: dict[str, dict[str, Any]] = {
    "synchronous": {},
    "blocks of 1": {"schedule": ASYNC},
    "blocks of 5": {"schedule": {"ar_step": 5, "block_size": 5}},
    "blocks of 1, left out and kept": {
        "schedule": {**ASYNC, "idle_frames": "left_out", "finished_frames": "kept"}
    },
    "windows of 5": {"schedule": {"window": 5, "overlap": 1, "ar_step": 1}},
    "windows of 401, 200 steps": {"schedule": {**ASYNC, "window": 401, "steps": 200}},
    "sliding": {"schedule": {**ASYNC, "sliding": True, "steps": 50}},
    "500 shots": {"schedule": ASYNC, "storyboard": {"shots": SHOTS}},
    "500 shots in a text": {
        "schedule": ASYNC, "storyboard": {"text": TEXT, "seconds": 600.0, "ease": 8},
    },
    "300 key images": {
        "schedule": ASYNC, "frames": {"connected": ["key_images"], "key_seconds": KEYS},
    },
}  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI source tree")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--profile", help="also where the time of this case goes")
    return parser.parse_args()


def _load_answer(comfyui: Path, work: Path) -> Any:
    sys.path.insert(0, str(ROOT))
    from devtools import inprocess

    inprocess.boot_host(comfyui, work)
    inprocess.load_pack(ROOT)
    name = next(name for name in sys.modules if name.endswith(".nodes.live_plan"))
    return importlib.import_module(name).answer_plan


def _question(case: dict[str, Any], turn: int) -> dict[str, Any]:
    schedule = {"frames": FRAMES - turn, "steps": 30, **case.get("schedule", {})}
    # Another film with each turn, for a storyboard has its own length.
    schedule["prefix_noise"] = turn
    return {"model": "SkyReels-V2-DF-14B-540P", "frames": {}, **case, "schedule": schedule}


def _measure(answer: Any, case: dict[str, Any], turns: int) -> str:
    clock, processor, size = [], [], 0
    for turn in range(turns):
        body = json.dumps(_question(case, turn))
        begin = time.perf_counter(), time.process_time()
        told = json.dumps(answer(json.loads(body)))
        clock.append(1000 * (time.perf_counter() - begin[0]))
        processor.append(1000 * (time.process_time() - begin[1]))
        size = len(told)
        assert "plan" in json.loads(told), told[:300]
    both = [f"{min(one):6.1f} {statistics.median(one):6.1f}" for one in (clock, processor)]
    return f"{both[0]}   {both[1]}   {size:7d}"


def main() -> int:
    """Print the table."""
    options = _arguments()
    with tempfile.TemporaryDirectory() as work:
        answer = _load_answer(options.comfyui, Path(work))
        print(f"{'':32} clock, ms      processor, ms   bytes\n{'':32}  least median   least median")
        for name, case in CASES.items():
            print(f"{name:32} {_measure(answer, case, options.turns)}", flush=True)
        if options.profile:
            question, profile = _question(CASES[options.profile], 0), cProfile.Profile()
            profile.runcall(lambda: [answer(question) for _ in range(10)])
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)
    return 0


if __name__ == "__main__":
    sys.exit(main())
