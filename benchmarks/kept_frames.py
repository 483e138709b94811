"""Films whose finished frames are kept, against films that compute all frames, of the toy world.

    python benchmarks/kept_frames.py [MODE ...] [--scenes 4] [--every 5 10 1000]

Modes as in `cache.py`. For each number of model calls after which finished frames are computed
again, with frames that wait computed and left out: the share of the tokens that is computed, PSNR
of the frames against the film of all of them (mean and worst of the scenes), and how many windows
show what was asked by the toy world's instruments.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import numpy as np
import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cache import BLOCKS, SEED, Made, make_all, plan_of, psnr  # noqa: E402

from skyreels_model.cache.kept_frames import FrameKeeper, Keeping, KeptVelocity  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import Film, SeededNoise, generate  # noqa: E402
from skyreels_model.rollout.history import new_history  # noqa: E402
from toy import measure  # noqa: E402
from toy.toyset import GUIDANCE, ToySet  # noqa: E402
from toy.world import HELD_OUT, Scene  # noqa: E402


@torch.inference_mode()
def make(toy: ToySet, scene: Scene, plan: FilmPlan, keeping: Keeping) -> Made:
    film, seen = Film(plan), []
    text, rate = toy.encode([scene.caption, ""]), torch.tensor([plan.fps] * 2)

    def call(x: Tensor, timestep: Tensor, **how: object) -> Tensor:
        seen.append(x.shape[2])
        return toy.transformer(x, timestep, text, fps=rate, **how)

    def ask(keeper: FrameKeeper, x: Tensor, t: Tensor) -> Tensor:
        both = keeper.forward(("prompt", ""), call, x.repeat(2, 1, 1, 1, 1), t.repeat(2, 1))
        cond, uncond = both.chunk(2)
        return uncond + GUIDANCE * (cond - uncond)

    velocity = KeptVelocity(film, keeping, ask)
    for _ in generate(velocity, plan, SeededNoise(SEED), new_history(plan, toy.vae), film=film):
        pass
    return Made(toy.frames(film), seen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modes", nargs="*", metavar="MODE", help=", ".join(BLOCKS))
    parser.add_argument("--scenes", type=int, default=4)
    parser.add_argument("--every", nargs="*", type=int, default=[5, 10, 1000])
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads cost time at this size
    toy, scenes = ToySet.load(), HELD_OUT[::2][: options.scenes]
    print("| mode | again every | frames that wait | tokens | PSNR | worst | right |")
    print("|" + "---|" * 7)
    for mode in options.modes or BLOCKS:
        plan = plan_of(mode, 30)
        spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
        whole, _ = make_all(toy, scenes, plan, None, SEED)
        for every in options.every:
            for idle in ("computed", "left_out") if plan.ar_step else ("computed",):
                own = dataclasses.replace(plan, idle_frames=idle)
                films = [make(toy, scene, own, Keeping(every)) for scene in scenes]
                dbs = [psnr(f.frames, w.frames) for f, w in zip(films, whole, strict=True)]
                tokens = sum(sum(f.seen) for f in films) / sum(sum(w.seen) for w in whole)
                right = sum(
                    score.ok
                    for film, scene in zip(films, scenes, strict=True)
                    for score in measure.scores(film.frames, scene.caption, spans, plan.fps)
                )
                print(
                    f"| {mode} | {every} | {idle} | {tokens:.2f} | {np.mean(dbs):.1f} | "
                    f"{min(dbs):.1f} | {right} of {len(scenes) * len(spans)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
