"""Films of the toy set's block-causal variant, against the model that it was trained from.

    python benchmarks/causal.py [--scenes 8] [--steps 20 4]

Held-out scenes, blocks of three latents, one after the other. For each film and way to make it: how
many windows show what was asked by the toy world's instruments, with the LoRA in blocks, without it
in blocks, and without it and with all frames seeing each other. Then the processor time of a model
call and what is kept, over films of several lengths.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from skyreels_model.cache.kept_frames import KeptVelocity  # noqa: E402
from skyreels_model.model.identity import CAUSAL  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import Film, SeededNoise, generate  # noqa: E402
from toy import measure  # noqa: E402
from toy.toyset import WINDOW, ToySet, blocks_plan  # noqa: E402
from toy.world import HELD_OUT, Scene  # noqa: E402

# Solver and guidance, by steps.
WAYS = {20: ("unipc", 2.0), 4: ("lcm", 1.0)}
FILMS = {
    "one window": (WINDOW, False),
    "three windows": (WINDOW + 48, False),
    "sliding, 81 frames": (WINDOW + 48, True),
    "sliding, 177 frames": (WINDOW + 144, True),
}
LENGTHS = (81, 177, 369)


def count_right(
    toy: ToySet, scenes: Sequence[Scene], plan: FilmPlan, way: tuple[str, float], blocks: bool
) -> str:
    """How many windows of these films are right, of how many."""
    spans = [(0, plan.num_frames)]
    if plan.num_frames > plan.window:
        spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
    solver, guidance = way
    right = 0
    for seed, scene in enumerate(scenes):
        film = toy.film(scene.caption, plan, seed, solver, guidance=guidance, blocks=blocks)
        right += sum(score.ok for score in measure.scores(film, scene.caption, spans, plan.fps))
    return f"{right} of {len(scenes) * len(spans)}"


def measure_films(
    causal: ToySet, plain: ToySet, scenes: Sequence[Scene], steps: Sequence[int]
) -> None:
    print("| film | steps | in blocks | without the LoRA, in blocks | without it, all see all |")
    print("|---|---|---|---|---|")
    for name, (frames, sliding) in FILMS.items():
        for count in steps:
            plan = blocks_plan(frames, count)
            plan = dataclasses.replace(plan, sliding=sliding, history="latents")
            way = WAYS[count]
            ways = [(causal, True), (plain, True), *([] if sliding else [(plain, False)])]
            fields = [count_right(toy, scenes, plan, way, blocks) for toy, blocks in ways]
            fields += [""] * sliding
            print(f"| {name} | {count} ({way[0]}, {way[1]:g}) | {' | '.join(fields)} |", flush=True)


@torch.inference_mode()
def measure_cost(toy: ToySet, scene: Scene) -> None:
    """Of the two halves of films: a call is to cost the same wherever it is."""
    print("\n| frames | calls | ms a call, first half | second half | kept, most |")
    print("|---|---|---|---|---|")
    for frames in LENGTHS:
        plan = blocks_plan(frames)
        film, taken, kept = Film(plan, "lcm"), list[float](), 0
        velocity = toy.blocks_velocity(film, scene.caption)
        assert isinstance(velocity, KeptVelocity)

        def timed(x: Tensor, t: Tensor, ask: KeptVelocity = velocity) -> Tensor:
            begin = time.process_time()
            answer = ask(x, t)
            taken.append(1000 * (time.process_time() - begin))  # noqa: B023
            return answer

        for _ in generate(timed, plan, SeededNoise(1), film=film):
            kept = max(kept, *(store.nbytes for store in velocity.keeper.stores.values()))
        half = len(taken) // 2
        first, second = (statistics.median(part) for part in (taken[:half], taken[half:]))
        print(f"| {frames} | {len(taken)} | {first:.1f} | {second:.1f} | {kept / 1000:.0f} kB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--steps", nargs="+", type=int, default=list(WAYS), choices=WAYS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads cost time at this size
    causal, plain = ToySet.load(CAUSAL), ToySet.load("T2V")
    scenes = HELD_OUT[:: len(HELD_OUT) // options.scenes][: options.scenes]
    measure_films(causal, plain, scenes, options.steps)
    measure_cost(causal, HELD_OUT[0])


if __name__ == "__main__":
    main()
