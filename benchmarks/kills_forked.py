"""As `kills.py`, without a server: films by `skyreels_model` alone, in a process that is killed.

    python3 benchmarks/kills_forked.py --kills 50 --seed 0

The process is a fork of this one, so that a kill costs no start; it saves after every model call.
One kill in three waits, from its drawn moment on, for a file that is being written. Needs a system
that forks.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from skyreels_model.rollout.conditions import Conditions  # noqa: E402
from skyreels_model.rollout.film import Film  # noqa: E402
from skyreels_model.rollout.history import new_history  # noqa: E402
from skyreels_model.rollout.loop import denoise  # noqa: E402
from skyreels_model.rollout.noise import SeededNoise  # noqa: E402
from skyreels_model.store.keys import window_keys  # noqa: E402
from skyreels_model.store.store import FilmStore, Session, make_film  # noqa: E402
from toy.toyset import ToySet, toy_plan  # noqa: E402

PROMPT = "a red circle moving right on a black background"
KINDS: dict[str, dict[str, Any]] = {
    "windows, pixels": {},
    "windows, latents, anchor": {"history": "latents", "anchor": 0.5},
    "one sequence": {"sliding": True},
    "synchronous": {"ar_step": 0},
}


def make(toy: ToySet, kind: str, windows: int, folder: Path | None) -> torch.Tensor:
    """The latents of a film, made with a store or without."""
    plan, given = replace(toy_plan(windows), **KINDS[kind]), Conditions()
    film, velocity = Film(plan), toy.velocity(PROMPT)
    history = new_history(plan, toy.vae)

    def run(session: Session | None) -> None:
        def sample(film: Film) -> None:
            for _ in denoise(film, velocity, SeededNoise(1)):
                if session:
                    session.save_row(film)

        make_film(film, sample, history, session)

    with torch.inference_mode():
        if folder is None:
            run(None)
        else:
            keys = window_keys(plan, given, film.solver, lambda window: {})
            with FilmStore(folder, every=0).open(keys) as session:
                run(session)
    return torch.cat(list(film.finished), dim=2)


def kill_after(seconds: float, folder: Path | None, work: Callable[[], Any]) -> bool:
    """Work in a fork that is killed after so long; False where it was done by then.

    folder: where a file must be half-written at that moment, or any moment later.
    """
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    until = time.monotonic() + seconds
    while time.monotonic() < until or (folder and not any(folder.glob("*.part"))):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            if status:
                raise SystemExit(f"a run ended with status {status}")
            return False
        time.sleep(0.0001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--windows", type=int, default=4, help="of a film")
    parser.add_argument("--films", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw, toy, kills, wrong = random.Random(options.seed), ToySet.load(), 0, 0
    begun = time.monotonic()
    expected = {kind: make(toy, kind, options.windows, None) for kind in options.films}
    longest = (time.monotonic() - begun) / len(expected) / 4  # a quarter of a film
    print("| film | kills | while a file was being written | equal |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as base:
        number = 0
        while kills < options.kills:
            kind, folder = options.films[number % len(expected)], Path(base) / str(number)
            count = halves = 0

            def work(kind: str = kind, folder: Path = folder) -> None:
                make(toy, kind, options.windows, folder)

            while kills + count < options.kills:
                moment, writing = draw.uniform(0, longest), draw.random() < 1 / 3
                if not kill_after(moment, folder if writing else None, work):
                    break
                count += 1
                halves += len(sorted(folder.glob("*.part")))
            equal = torch.equal(make(toy, kind, options.windows, folder), expected[kind])
            print(f"| {kind}, {number} | {count} | {halves} | {equal} |", flush=True)
            number, kills, wrong = number + 1, kills + count, wrong + (not equal)
    print(f"{kills} kills, {wrong} of {number} films not equal")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
