"""Films whose frames are left out while they wait, against films of all frames, of the toy world.

    python benchmarks/idle_frames.py [BLOCK ...] [--scenes 8] [--ahead 0 1] [--cached]

Asynchronous films in blocks of 1, 3 and 5, ar_step 2 and 5. For each number of frames that are
shown though they wait: the share of the tokens that is computed, and of attention (their square),
PSNR of the frames against the film of all of them, and how many windows show what was asked by the
toy world's instruments, of both. --cached: with half of the model calls forecast, in both.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cache import make_all, psnr  # noqa: E402

import skyreels_model.plan.film_plan as film_plan  # noqa: E402
from skyreels_model.cache.forecast import Forecast  # noqa: E402
from skyreels_model.cache.settings import CacheSettings  # noqa: E402
from toy import measure  # noqa: E402
from toy.toyset import ToySet, toy_plan  # noqa: E402
from toy.world import HELD_OUT, Scene  # noqa: E402

BLOCKS, LAGS, SEED = (1, 3, 5), (2, 5), 7


def measure_plan(
    toy: ToySet,
    plan: film_plan.FilmPlan,
    scenes: tuple[Scene, ...],
    aheads: list[int],
    cached: bool,
) -> None:
    """A row for each number of frames ahead, printed as it comes."""
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)

    def right(frames: np.ndarray, scene: Scene) -> int:
        return sum(s.ok for s in measure.scores(frames, scene.caption, spans, plan.fps))

    policy = Forecast(CacheSettings()) if cached else None
    whole, _ = make_all(toy, scenes, plan, policy, SEED)
    before = sum(right(film.frames, scene) for film, scene in zip(whole, scenes, strict=True))
    for ahead in aheads:
        film_plan.SHOWN_AHEAD = ahead
        left_out = dataclasses.replace(plan, idle_frames="left_out")
        films, _ = make_all(toy, scenes, left_out, policy, SEED)
        after = sum(right(film.frames, scene) for film, scene in zip(films, scenes, strict=True))
        dbs = [psnr(f.frames, w.frames) for f, w in zip(films, whole, strict=True)]
        seen, all_seen = (
            [np.array(one.seen, dtype=float) for one in made] for made in (films, whole)
        )
        shares = [
            sum((one**power).sum() for one in seen) / sum((one**power).sum() for one in all_seen)
            for power in (1, 2)
        ]
        calls = sum(map(len, seen)) / sum(map(len, all_seen))
        judged = f"{after} ({before}) of {len(scenes) * len(spans)}"
        print(
            f"| {plan.block_size} | {plan.ar_step} | {ahead} | {calls:.2f} | {shares[0]:.2f} | "
            f"{shares[1]:.2f} | {np.mean(dbs):.1f} | {min(dbs):.1f} | {judged} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("blocks", nargs="*", type=int, default=BLOCKS)
    parser.add_argument("--lags", nargs="*", type=int, default=LAGS)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--ahead", nargs="*", type=int, default=[0, 1])
    parser.add_argument("--cached", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads cost time at this size
    toy = ToySet.load()
    scenes = HELD_OUT[:: max(len(HELD_OUT) // options.scenes, 1)][: options.scenes]
    print("| block | ar_step | ahead | calls | tokens | attention | PSNR | worst | right |")
    print("|---|---|---|---|---|---|---|---|---|")
    for block in options.blocks:
        for lag in options.lags:
            plan = dataclasses.replace(toy_plan(2, lag), steps=options.steps, block_size=block)
            measure_plan(toy, plan, scenes, options.ahead, options.cached)


if __name__ == "__main__":
    main()
