"""Workers that are killed at drawn moments: is each end told once, is anything left behind?

    python3 benchmarks/worker_kills.py [--kills 30] [--seed 0]

A team of two ranks computes forwards of a toy model; its worker is killed (SIGKILL) at a drawn
moment: while it starts, while it is asked, in a forward or between two. Prints how each run ended.
Ends with 1 where an error is none of a team's, takes too long, or leaves a process behind.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

import test_parallel_team as teams  # noqa: E402
import torch  # noqa: E402

LONGEST = 4.0  # seconds from the start of a worker to its kill, drawn evenly
LATE = 20.0  # seconds until the error is told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    draw, wrong, longest = random.Random(given.seed), 0, 0.0
    for number in range(1, given.kills + 1):
        delay = draw.uniform(0, LONGEST)
        told, took = teams.kill_after(delay)
        good = "rank 1 was ended by the system (SIGKILL)" in told and took < LATE
        wrong, longest = wrong + (not good), max(longest, took)
        print(f"{number}: killed after {delay:.2f} s, told in {took:.2f} s: {told}", flush=True)
    print(
        f"{given.kills} kills (seed {given.seed}): {wrong} not told right, longest {longest:.2f} s"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
