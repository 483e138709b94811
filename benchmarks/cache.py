"""Forecast model calls against other ways to save them, on films of the toy world.

    python benchmarks/cache.py [MODE ...] [--scenes 8] [--steps 30] [--out rows.json]
    python benchmarks/cache.py --draw docs/cache.png rows.json [...]

Modes: sync, and asynchronous (ar_step 5) in blocks of 1, 3 and 5. For each way and setting: the
share of the model calls that is computed, PSNR of the frames against the film of all calls (mean
and worst of the scenes), and how many windows show what was asked by the toy world's instruments.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cache_policies import EasyRule, EveryNth, TimeRule  # noqa: E402

from skyreels_model.cache.forecast import Forecast  # noqa: E402
from skyreels_model.cache.settings import CacheSettings  # noqa: E402
from skyreels_model.cache.velocity import CachedVelocity, Policy  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import Film, SeededNoise, generate  # noqa: E402
from skyreels_model.rollout.history import new_history  # noqa: E402
from toy import measure  # noqa: E402
from toy.toyset import ToySet, toy_plan  # noqa: E402
from toy.world import HELD_OUT, Scene  # noqa: E402

BLOCKS = {"sync": 0, "blocks of 1": 1, "blocks of 3": 3, "blocks of 5": 5}
FEWER = (20, 15, 12, 10)
SEED, OTHER_SEED = 7, 8
Way = tuple[str, str, FilmPlan, Policy | None, int]


def plan_of(mode: str, steps: int) -> FilmPlan:
    """Two windows of 33 frames."""
    block = BLOCKS[mode]
    plan = toy_plan(2, 5 if block else 0)
    return dataclasses.replace(plan, steps=steps, block_size=max(block, 1))


def ways(plan: FilmPlan, embed: Callable[[Tensor], Tensor]) -> list[Way]:
    """Name, setting, plan, policy and seed of each."""
    found: list[Way] = [("another seed", "", plan, None, OTHER_SEED)]
    for steps in FEWER:
        fewer = dataclasses.replace(plan, steps=steps * plan.steps // 30)
        found.append(("fewer steps", f"{fewer.steps}", fewer, None, SEED))
    for n in (2, 3):
        found.append(("every n-th call", f"{n}", plan, EveryNth(n), SEED))
    for name, each in (("TeaCache's rule", False), ("FlowCache's rule", True)):
        for threshold in (0.1, 0.2):
            policy = TimeRule(threshold, embed, each)
            found.append((name, f"{threshold}", plan, policy, SEED))
    for threshold in (0.1, 0.2):
        found.append(("EasyCache's rule", f"{threshold}", plan, EasyRule(threshold), SEED))
    for threshold in (0.08, 0.15, 0.25):
        policy = Forecast(CacheSettings(threshold))
        found.append(("SkyReels-V2 TeaCache", f"{threshold}", plan, policy, SEED))
    return found


@torch.inference_mode()
def make(
    toy: ToySet, scene: Scene, plan: FilmPlan, policy: Policy | None, seed: int
) -> tuple[np.ndarray, int]:
    """The film's frames, and how many model calls were computed."""
    film, velocity = Film(plan), toy.velocity(scene.caption, plan.fps)
    if policy is not None:
        velocity = CachedVelocity(film, velocity, policy)
    for _ in generate(velocity, plan, SeededNoise(seed), new_history(plan, toy.vae), film=film):
        pass
    return toy.frames(film), plan.total_rows() - film.skipped


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(max(float(((a - b) ** 2).mean()), 1e-12))


def measure_mode(toy: ToySet, mode: str, scenes: tuple[Scene, ...], steps: int) -> list[dict]:
    """The rows of a mode, printed as they come."""
    plan = plan_of(mode, steps)
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)

    def right(frames: np.ndarray, scene: Scene) -> int:
        return sum(s.ok for s in measure.scores(frames, scene.caption, spans, plan.fps))

    def embed(t: Tensor) -> Tensor:
        # Rows of one value, as the network's own: (B, F, D).
        return toy.transformer.embed_time(t, torch.tensor([plan.fps]))[1].flatten(2)

    whole = [make(toy, scene, plan, None, SEED)[0] for scene in scenes]
    count, all_right = plan.total_rows(), sum(map(right, whole, scenes))
    rows = []
    print(f"{mode}, {steps} steps, {count} calls; all computed: right {all_right}", flush=True)
    for name, setting, own, policy, seed in ways(plan, embed):
        films = [make(toy, scene, own, policy, seed) for scene in scenes]
        judged = [right(film, scene) for (film, _), scene in zip(films, scenes, strict=True)]
        dbs = [psnr(film, full) for (film, _), full in zip(films, whole, strict=True)]
        row = {
            "mode": mode, "steps": steps, "way": name, "setting": setting,
            "share": float(np.mean([calls for _, calls in films])) / count,
            "psnr": float(np.mean(dbs)), "worst": float(min(dbs)),
            "right": sum(judged),
            "windows": len(scenes) * len(spans), "right_uncached": all_right,
        }  # fmt: skip
        rows.append(row)
        print(
            f"| {mode} | {name} | {setting} | {row['share']:.2f} | {row['psnr']:.1f} | "
            f"{row['worst']:.1f} | {row['right']} of {row['windows']} |",
            flush=True,
        )
    return rows


def draw(path: pathlib.Path, rows: list[dict]) -> None:
    """PSNR over the share computed, a field for each mode."""
    from PIL import Image, ImageDraw

    width, height, margin = 420, 320, 50
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = [name for name in dict.fromkeys(row["way"] for row in rows) if name != "another seed"]
    colours = ("gray", "saddlebrown", "darkorange", "purple", "steelblue", "crimson")
    picture = Image.new("RGB", (width * len(modes), height + 30), "white")
    pen = ImageDraw.Draw(picture)
    for number, mode in enumerate(modes):
        left = number * width

        def place(share: float, db: float, left: int = left) -> tuple[float, float]:
            across = (min(max(share, 0.2), 1.0) - 0.2) / 0.8 * (width - 2 * margin)
            up = (min(max(db, 10), 65) - 10) / 55 * (height - 2 * margin)
            return left + margin + across, height - margin - up

        pen.text((left + margin, 10), f"{mode}: PSNR in dB over the share computed", "black")
        for db in range(10, 66, 10):
            pen.line([place(0.2, db), place(1, db)], "gainsboro")
            pen.text((left + 20, place(0.2, db)[1] - 6), f"{db}", "black")
        for tenth in range(2, 11, 2):
            pen.text((place(tenth / 10, 10)[0] - 8, height - margin + 8), f"{tenth / 10}", "black")
        for name, colour in zip(names, colours, strict=True):
            own = [row for row in rows if row["mode"] == mode and row["way"] == name]
            points = sorted(place(row["share"], row["psnr"]) for row in own)
            pen.line(points, colour, 2)
            for x, y in points:
                pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        pen.text((margin + 150 * number, height), name, colour)
    picture.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="MODE", help=", ".join(BLOCKS))
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=pathlib.Path, help="write the rows into this file")
    parser.add_argument("--draw", type=pathlib.Path, help="draw the rows of these files")
    options = parser.parse_args()
    if options.draw:
        files = [json.loads(pathlib.Path(name).read_text("utf-8")) for name in options.names]
        draw(options.draw, [row for rows in files for row in rows])
        return
    torch.set_num_threads(1)  # more threads cost time at this size
    toy = ToySet.load()
    scenes = HELD_OUT[:: max(len(HELD_OUT) // options.scenes, 1)][: options.scenes]
    rows = []
    for mode in options.names or BLOCKS:
        rows += measure_mode(toy, mode, scenes, options.steps)
    if options.out:
        options.out.write_text(json.dumps(rows), "utf-8")


if __name__ == "__main__":
    main()
