"""Thousands of hostile files, texts and numbers: is there a result or a plain error each time?

    python benchmarks/hostile.py [--cases 10000] [--seed 0] [--only videos ...]

Needs hypothesis. Prints a line for each kind, with the smallest case that fails. Each kind runs in
a process of its own, so that a crash is seen; one case may take 10 s. For nodes see fuzz.py.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SLOW = 10  # seconds


def run_kind(name: str, cases: int, seed: int) -> None:
    import hypothesis
    from hypothesis import HealthCheck, given, settings

    for folder in (ROOT, ROOT / "tests"):
        sys.path.insert(0, str(folder))
    check, strategy = importlib.import_module("hostile").PROPERTIES[name]
    tried = 0

    def timed(value: object) -> None:
        nonlocal tried
        tried += 1
        faulthandler.dump_traceback_later(SLOW, exit=True)
        check(value)
        faulthandler.cancel_dump_traceback_later()

    limits = settings(
        max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    begin = time.monotonic()
    hypothesis.seed(seed)(limits(given(strategy)(timed)))()
    print(f"{name}: {tried} cases in {time.monotonic() - begin:.0f} s, none failed", flush=True)


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--cases", type=int, default=10000)
    asked.add_argument("--seed", type=int, default=0)
    asked.add_argument("--only", nargs="+")
    asked.add_argument("--one", help=argparse.SUPPRESS)
    options = asked.parse_args()
    if options.one:
        run_kind(options.one, options.cases, options.seed)
        return 0
    sys.path.insert(0, str(ROOT / "tests"))
    sys.path.insert(0, str(ROOT))
    kinds = options.only or list(importlib.import_module("hostile").PROPERTIES)
    failed = []
    for kind in kinds:
        each = ["--cases", str(-(-options.cases // len(kinds))), "--seed", str(options.seed)]
        done = subprocess.run([sys.executable, __file__, "--one", kind, *each], check=False)
        if done.returncode:
            failed.append(kind)
    print(f"failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
