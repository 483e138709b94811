"""Every check of this repository: lint, types and tests.

What passes only under some hashes or in one order of the tests passes by luck. So each run draws
both, prints how to run the same again, and takes them as options.
"""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devtools import cache
from devtools.cache import SetupError

LARGEST_SEED = 2**32 - 1
# Each worker holds a ComfyUI of its own: about 2 GB.
MOST_WORKERS = 8
# Workers share the cores: with more threads than cores each waits for the others.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Seeds:
    """What no result may depend on: the hashes of strings, and the order of the tests."""

    hashes: int
    order: int

    def __post_init__(self) -> None:
        for option, seed in (("--hash-seed", self.hashes), ("--order-seed", self.order)):
            if not 0 <= seed <= LARGEST_SEED:
                nearest = min(max(seed, 0), LARGEST_SEED)
                raise SetupError(
                    f"{option} is {seed}; it must be 0 to {LARGEST_SEED}; nearest: {nearest}"
                )

    @classmethod
    def draw(cls, hashes: int | None = None, order: int | None = None) -> Seeds:
        """Seeds as given, drawn where they are not."""
        drawn = [random.SystemRandom().randint(0, LARGEST_SEED) for _ in range(2)]
        return cls(drawn[0] if hashes is None else hashes, drawn[1] if order is None else order)

    def options(self) -> str:
        """The options of `dev.py test` that repeat these."""
        return f"--hash-seed {self.hashes} --order-seed {self.order}"


def variables(seeds: Seeds, given: Mapping[str, str]) -> dict[str, str]:
    """The environment `given` for the tests and all that they start."""
    return {**given, **dict.fromkeys(THREADS, "1"), "PYTHONHASHSEED": str(seeds.hashes)}


def workers() -> int:
    """Processes to run the tests in: one for each core this process may use."""
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def pytest_command(
    seeds: Seeds, fast: bool, scratch: Path, arguments: Sequence[str] = ()
) -> list[str]:
    """pytest in all workers; `arguments` come last, so that they overrule (`-n 0`, `--basetemp`).

    A worker takes neighbouring tests, and helps another when its own are done: what a module or a
    session shares is made about once a worker.
    """
    command = ["pytest", "-n", str(workers()), "--dist", "worksteal"]
    # Draws within a test stay what the test says.
    command += ["--randomly-dont-reset-seed", f"--randomly-seed={seeds.order}"]
    # Neither into the repository nor into the system's folder for temporary files.
    command += ["-o", f"cache_dir={cache.root() / 'pytest'}", "--basetemp", str(scratch)]
    command += ["-m", "not slow"] if fast else []
    return [*command, *arguments]


def run(
    python: Path,
    root: Path,
    seeds: Seeds,
    environment: Mapping[str, str],
    arguments: Sequence[str],
    fast: bool = False,
) -> int:
    """Run every check on the repository `root`, whatever the one before said; 1 if any failed."""
    print(f"== to run the same again: dev.py test {seeds.options()}", flush=True)
    cache.root().mkdir(parents=True, exist_ok=True)
    verdicts = []
    with tempfile.TemporaryDirectory(
        dir=cache.root(), prefix="pytest-", ignore_cleanup_errors=True
    ) as scratch:
        checks = {
            "ruff check": ["ruff", "check", "."],
            "ruff format": ["ruff", "format", "--check", "."],
            "mypy": ["mypy"],
            "pytest": pytest_command(seeds, fast, Path(scratch), arguments),
        }
        for name, command in checks.items():
            print(f"== {name}", flush=True)
            begin = time.monotonic()
            code = subprocess.run(
                [python, "-m", *command], cwd=root, env=variables(seeds, environment)
            ).returncode
            verdict = "ok" if code == 0 else f"FAILED ({code})"
            verdicts.append(f"{name:<12} {verdict:<12} {time.monotonic() - begin:6.1f} s")
    print("== summary", *verdicts, f"seeds        {seeds.options()}", sep="\n")
    return int(any("FAILED" in verdict for verdict in verdicts))
