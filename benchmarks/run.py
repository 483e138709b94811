"""All comparisons that a processor can make, one after the other: the rows of RESULTS.md.

    python benchmarks/run.py [--reference FOLDER] [--comfyui COMFYUI] [--only NAME ...] [--list]

Against diffusers, the reference (FOLDER, a source tree of SkyworkAI/SkyReels-V2, by default that of
SKYREELS_V2_REFERENCE) and ComfyUI's own Wan (COMFYUI, a source tree). Each is a script of this
folder in a process of its own. Those that compare times run both sides in turn and print medians.
What needs a tree that is not given is left out, and said. Ends with 1 if a script fails. Let
nothing else run beside it. All take about two hours on one core.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import time
from dataclasses import dataclass

FOLDER = pathlib.Path(__file__).resolve().parent
REFERENCE, HOST = "{reference}", "{comfyui}"


@dataclass(frozen=True)
class Comparison:
    """A script with its arguments; `extra` are added where their tree is given."""

    name: str
    what: str
    command: tuple[str, ...]
    extra: tuple[tuple[str, ...], ...] = ()

    def arguments(self, trees: dict[str, str]) -> list[str] | None:
        """The command line; None where it needs a tree that is not given."""
        parts = [*self.command]
        for option in self.extra:
            parts += option if not _missing(option, trees) else ()
        if _missing(parts, trees):
            return None
        return [part.format(**trees) for part in parts]


def _missing(parts: tuple[str, ...] | list[str], trees: dict[str, str]) -> list[str]:
    """The trees that these arguments need and that are not given."""
    return [f"--{name}" for name in ("reference", "comfyui")
            if any(f"{{{name}}}" in part for part in parts) and name not in trees]  # fmt: skip


TREES = (("--reference", REFERENCE), ("--comfyui", HOST))
VAE_FILE = (("--reference", f"{REFERENCE}/skyreels_v2_infer/modules/vae.py"),)
COMPARISONS = (
    Comparison("forward", "the transformer's forward", ("dit_forward.py",), TREES),
    Comparison("vae", "the VAE", ("vae.py",), VAE_FILE),
    Comparison("tiles", "the VAE's tiles against ComfyUI's", ("vae_tiles.py", HOST)),
    Comparison("memory", "the estimate of memory", ("memory.py",)),
    Comparison("loop", "what a film's loop costs", ("loop_overhead.py",)),
    Comparison("load", "loading a whole model", ("full_size.py",), (TREES[1],)),
    Comparison("import", "loading the pack", ("import_time.py", HOST)),
    Comparison("savings", "exact savings", ("savings.py",)),
    Comparison("cache", "model calls forecast, 30 steps", ("cache.py",)),
    Comparison("cache50", "model calls forecast, 50 steps", ("cache.py", "--steps", "50")),
    Comparison("idle", "frames that wait, left out", ("idle_frames.py",)),
    Comparison("drift", "colours over a minute", ("drift.py",)),
)


def run(comparison: Comparison, trees: dict[str, str]) -> bool:
    """Print a comparison's rows; whether it did not fail."""
    arguments = comparison.arguments(trees)
    print(f"\n## {comparison.name}: {comparison.what}\n", flush=True)
    if arguments is None:
        missing = " and ".join(_missing(comparison.command, trees))
        print(f"left out: it needs {missing}", flush=True)
        return True
    print(f"`python benchmarks/{' '.join(arguments)}`\n", flush=True)
    begin = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, str(FOLDER / arguments[0]), *arguments[1:]]
    code = subprocess.run(command, env=environment, check=False).returncode
    print(f"\n{time.monotonic() - begin:.0f} s" + f", FAILED with {code}" * bool(code), flush=True)
    return code == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = [comparison.name for comparison in COMPARISONS]
    parser.add_argument("--reference", default=os.environ.get("SKYREELS_V2_REFERENCE"))
    parser.add_argument("--comfyui", help="a ComfyUI source tree")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    options = parser.parse_args()
    trees = {n: getattr(options, n) for n in ("reference", "comfyui") if getattr(options, n)}
    if options.list:
        for comparison in COMPARISONS:
            print(f"{comparison.name}: {comparison.what}")
        return 0
    chosen = [comparison for comparison in COMPARISONS if comparison.name in options.only]
    return int(not all([run(comparison, trees) for comparison in chosen]))


if __name__ == "__main__":
    sys.exit(main())
