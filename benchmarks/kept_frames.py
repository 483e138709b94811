"""Films whose finished frames are kept, against films that compute all frames, of the toy world.

    python benchmarks/kept_frames.py [MODE ...] [--scenes 4] [--steps 30] [--every 5 10 1000]
                                     [--threshold 0 ...] [--idle computed left_out]

Modes as in `cache.py`. For each number of model calls after which finished frames are computed
again, with frames that wait computed and left out, and each threshold of the cache on top (0: none)
against the film of all frames: the share of the model calls that is made, of the tokens, and of the
operations, which those would take in the 1.3B model at 540P; PSNR of the frames (mean and worst of
the scenes); and how many windows show what was asked by the toy world's instruments.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cache import (  # noqa: E402
    BLOCKS,
    SEED,
    count_operations,
    make_all,
    plan_of,
    psnr,
)

from skyreels_model.cache.forecast import Forecast  # noqa: E402
from skyreels_model.cache.kept_frames import FrameKeeper, Keeping, KeptVelocity  # noqa: E402
from skyreels_model.cache.settings import CacheSettings  # noqa: E402
from skyreels_model.cache.velocity import CachedVelocity  # noqa: E402
from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import Film, SeededNoise, generate  # noqa: E402
from skyreels_model.rollout.history import new_history  # noqa: E402
from toy import measure  # noqa: E402
from toy.toyset import GUIDANCE, ToySet  # noqa: E402
from toy.world import HELD_OUT, Scene  # noqa: E402

TOKENS = 34 * 60  # of a latent frame at 540P


@dataclasses.dataclass(frozen=True)
class Made:
    """Frames (T, H, W, 3) of a film, and of each call made: latents in view, and computed."""

    frames: np.ndarray
    calls: list[tuple[int, int]]

    @property
    def operations(self) -> int:
        return sum(itertools.starmap(count_partly, self.calls))


def count_partly(view: int, computed: int) -> int:
    """As `count_operations`, where those that are not computed are seen."""
    unseen = (view - computed) * TOKENS
    products_each = 2 * 2 * ModelConfig().dim  # scores, and what they weigh
    return count_operations(computed) + products_each * computed * TOKENS * unseen


@torch.inference_mode()
def make(toy: ToySet, scene: Scene, plan: FilmPlan, keeping: Keeping, threshold: float) -> Made:
    film, views, computed = Film(plan), list[int](), list[int]()
    text, rate = toy.encode([scene.caption, ""]), torch.tensor([plan.fps] * 2)

    def call(x: Tensor, timestep: Tensor, **how: object) -> Tensor:
        computed.append(x.shape[2])
        return toy.transformer(x, timestep, text, fps=rate, **how)

    def ask(keeper: FrameKeeper, x: Tensor, t: Tensor) -> Tensor:
        views.append(x.shape[2])
        both = keeper.forward(("prompt", ""), call, x.repeat(2, 1, 1, 1, 1), t.repeat(2, 1))
        cond, uncond = both.chunk(2)
        return uncond + GUIDANCE * (cond - uncond)

    kept = KeptVelocity(film, keeping, ask)
    velocity = CachedVelocity(film, kept, Forecast(CacheSettings(threshold)))
    for _ in generate(velocity, plan, SeededNoise(SEED), new_history(plan, toy.vae), film=film):
        pass
    return Made(toy.frames(film), list(zip(views, computed, strict=True)))


def measure_mode(
    toy: ToySet, mode: str, scenes: Sequence[Scene], plan: FilmPlan, options: argparse.Namespace
) -> None:
    """The rows of a mode, printed as they come."""
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
    whole, _ = make_all(toy, scenes, plan, None, SEED)
    idles = options.idle if plan.ar_step else ["computed"]
    for every, idle, threshold in itertools.product(options.every, idles, options.threshold):
        own = dataclasses.replace(plan, idle_frames=idle)
        films = [make(toy, scene, own, Keeping(every), threshold) for scene in scenes]
        dbs = [psnr(f.frames, w.frames) for f, w in zip(films, whole, strict=True)]
        calls = sum(len(f.calls) for f in films) / sum(len(w.seen) for w in whole)
        tokens = sum(computed for f in films for _, computed in f.calls)
        tokens /= sum(sum(w.seen) for w in whole)
        operations = sum(f.operations for f in films) / sum(w.operations for w in whole)
        right = sum(
            score.ok
            for film, scene in zip(films, scenes, strict=True)
            for score in measure.scores(film.frames, scene.caption, spans, plan.fps)
        )
        print(
            f"| {mode} | {plan.steps} | {every} | {idle} | {threshold:g} | {calls:.2f} | "
            f"{tokens:.2f} | {operations:.2f} | {np.mean(dbs):.1f} ({min(dbs):.1f}) | "
            f"{right} of {len(scenes) * len(spans)} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modes", nargs="*", metavar="MODE", help=", ".join(BLOCKS))
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--every", nargs="+", type=int, default=[5, 10, 1000])
    parser.add_argument("--idle", nargs="+", default=["computed", "left_out"])
    parser.add_argument("--threshold", nargs="+", type=float, default=[0.0])
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads cost time at this size
    toy, scenes = ToySet.load(), HELD_OUT[::2][: options.scenes]
    print(
        "| mode | steps | again every | frames that wait | threshold | calls | tokens | "
        "operations | PSNR (worst) | right |"
    )
    print("|" + "---|" * 10)
    for mode in options.modes or BLOCKS:
        measure_mode(toy, mode, scenes, plan_of(mode, options.steps), options)


if __name__ == "__main__":
    main()
