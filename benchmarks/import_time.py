"""Seconds that ComfyUI spends on loading this pack, in fresh processes.

python benchmarks/import_time.py COMFYUI [--runs 5]

COMFYUI is a source tree (`python3 dev.py test` fetches one into the user's cache).
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def load_once(host: pathlib.Path) -> float:
    """Boot the host in this process, then load the pack; seconds of the latter."""
    sys.path.append(str(ROOT))
    from devtools import inprocess

    with tempfile.TemporaryDirectory() as work:
        inprocess.boot_host(host, pathlib.Path(work))
        start = time.perf_counter()
        inprocess.load_pack(ROOT)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(load_once(options.host.resolve()))
        return
    command = [sys.executable, __file__, str(options.host), "--child"]
    seconds = []
    for _ in range(options.runs + 1):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout.splitlines()[-1]))
    # The first one also compiled the sources.
    warm = sorted(seconds[1:])
    print(
        f"first {seconds[0]:.3f} s; then median {statistics.median(warm):.3f} s "
        f"({warm[0]:.3f} to {warm[-1]:.3f})"
    )


if __name__ == "__main__":
    main()
