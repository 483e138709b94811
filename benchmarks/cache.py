"""Forecast model calls against other ways to save them, on films of the toy world.

    python benchmarks/cache.py [MODE ...] [--scenes 8] [--steps 30] [--ways WAY ...]
                               [--guidance 2] [--out rows.json]
    python benchmarks/cache.py --draw docs/cache.png rows.json [...]

Modes: sync, and asynchronous (ar_step 5) in blocks of 1, 3 and 5. For each way and setting, against
the film of all calls: the share of the model calls that is computed, of the operations that those
would take in the 1.3B model at 540P, and of the processor time in the same run; PSNR of the frames
(mean and worst of the scenes) and SSIM; and how many windows show what was asked by the toy world's
instruments. The scenes of a way are made together, which changes their last bits.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.flop_counter import FlopCounterMode

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from cache_policies import EasyRule, EveryNth, TimeRule  # noqa: E402

from skyreels_model.cache.forecast import Forecast  # noqa: E402
from skyreels_model.cache.settings import CacheSettings  # noqa: E402
from skyreels_model.cache.velocity import CachedVelocity, Policy  # noqa: E402
from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import Film, SeededNoise, generate  # noqa: E402
from skyreels_model.rollout.history import new_history  # noqa: E402
from toy import measure  # noqa: E402
from toy.lockstep import make_together  # noqa: E402
from toy.toyset import GUIDANCE, ToySet, toy_plan  # noqa: E402
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
    for threshold in (0.08, 0.15, 0.25, 0.5):
        policy = Forecast(CacheSettings(threshold))
        found.append(("SkyReels-V2 TeaCache", f"{threshold}", plan, policy, SEED))
    if plan.ar_step:
        fewer = dataclasses.replace(plan, idle_frames="left_out")
        found.append(("idle frames left out", "", fewer, None, SEED))
        policy = Forecast(CacheSettings())
        found.append(("both", f"{policy.settings.threshold}", fewer, policy, SEED))
    return found


@dataclasses.dataclass(frozen=True)
class Made:
    """Frames (T, H, W, 3) of a film, and how many latents each of its model calls was shown."""

    frames: np.ndarray
    seen: list[int]

    @property
    def operations(self) -> int:
        return sum(map(count_operations, self.seen))


@torch.inference_mode()
def make(
    toy: ToySet,
    scene: Scene,
    plan: FilmPlan,
    policy: Policy | None,
    seed: int,
    guidance: float = GUIDANCE,
) -> Made:
    seen: list[int] = []
    film, guided = Film(plan), toy.velocity(scene.caption, plan.fps, guidance)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.shape[2])
        return guided(x, t)

    asked = velocity if policy is None else CachedVelocity(film, velocity, policy)
    for _ in generate(asked, plan, SeededNoise(seed), new_history(plan, toy.vae), film=film):
        pass
    return Made(toy.frames(film), seen)


def make_all(
    toy: ToySet,
    scenes: Sequence[Scene],
    plan: FilmPlan,
    policy: Policy | None,
    seed: int,
    guidance: float = GUIDANCE,
) -> tuple[list[Made], float]:
    """The films of these scenes, and the processor seconds that they took."""
    begin, how = time.process_time(), (plan, policy, seed, guidance)
    makes = [lambda toys, s=scene: make(toys["DF"], s, *how) for scene in scenes]
    return make_together({"DF": toy}, makes), time.process_time() - begin


@cache
def count_operations(latents: int) -> int:
    """Of a block of the 1.3B model that is shown so many latents of 540P."""
    config = ModelConfig(num_layers=1)
    model = SkyReelsModel(config, dtype=torch.bfloat16, device="meta").requires_grad_(False)
    x = torch.empty(1, 16, latents, 68, 120, dtype=torch.bfloat16, device="meta")
    text = torch.empty(1, 512, config.text_dim, dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(x, torch.empty(1, latents, device="meta"), text)
    return counted.get_total_flops()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * math.log10(max(float(((a - b) ** 2).mean()), 1e-12))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of frames (T, H, W, 3) in 0..1, in squares of 7 pixels."""
    x, y = (torch.from_numpy(frames).double().permute(0, 3, 1, 2) for frames in (a, b))

    def mean(z: Tensor) -> Tensor:
        return avg_pool2d(z, 7, stride=1)

    mx, my = mean(x), mean(y)
    vx, vy, both = (
        mean(one) - two for one, two in ((x * x, mx**2), (y * y, my**2), (x * y, mx * my))
    )
    light, structure = 0.01**2, 0.03**2
    same = (2 * mx * my + light) * (2 * both + structure)
    return float((same / ((mx**2 + my**2 + light) * (vx + vy + structure))).mean())


def measure_mode(
    toy: ToySet, mode: str, scenes: tuple[Scene, ...], options: argparse.Namespace
) -> list[dict]:
    """The rows of a mode, printed as they come."""
    steps, only, guidance = options.steps, options.ways, options.guidance
    plan = plan_of(mode, steps)
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)

    def right(films: list[Made]) -> int:
        return sum(
            score.ok
            for film, scene in zip(films, scenes, strict=True)
            for score in measure.scores(film.frames, scene.caption, spans, plan.fps)
        )

    def embed(t: Tensor) -> Tensor:
        # Rows of one value, as the network's own: (B, F, D).
        return toy.transformer.embed_time(t, torch.tensor([plan.fps]))[1].flatten(2)

    whole, seconds = make_all(toy, scenes, plan, None, SEED, guidance)
    rows, count, all_right = [], plan.total_rows(), right(whole)
    print(f"{mode}, {steps} steps, {count} calls; all computed: right {all_right}", flush=True)
    chosen = [way for way in ways(plan, embed) if not only or way[0] in only]
    for name, setting, own, policy, seed in chosen:
        films, taken = make_all(toy, scenes, own, policy, seed, guidance)
        pairs = list(zip(films, whole, strict=True))
        dbs = [psnr(film.frames, full.frames) for film, full in pairs]
        row = {
            "mode": mode, "steps": steps, "way": name, "setting": setting,
            "share": float(np.mean([len(film.seen) for film in films])) / count,
            "operations": float(np.mean([f.operations / w.operations for f, w in pairs])),
            "time": taken / seconds,
            "psnr": float(np.mean(dbs)), "worst": float(min(dbs)),
            "ssim": float(np.mean([ssim(film.frames, full.frames) for film, full in pairs])),
            "right": right(films),
            "windows": len(scenes) * len(spans), "right_uncached": all_right,
        }  # fmt: skip
        rows.append(row)
        print(describe(row), flush=True)
    return rows


def describe(row: dict) -> str:
    """A line of the table."""
    numbers = "{share:.2f} | {operations:.2f} | {time:.2f} | {psnr:.1f} | {worst:.1f} | {ssim:.3f}"
    numbers = numbers.format(**row)
    return "| {mode} | {way} | {setting} | {} | {right} of {windows} |".format(numbers, **row)


def draw(path: pathlib.Path, rows: list[dict]) -> None:
    """PSNR over the share of the operations, a field for each mode."""
    from PIL import Image, ImageDraw

    width, height, margin = 420, 320, 50
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    names = [name for name in dict.fromkeys(row["way"] for row in rows) if name != "another seed"]
    colours = ("gray", "saddlebrown", "darkorange", "purple", "steelblue", "crimson")
    colours = (*colours, "seagreen", "black")[: len(names)]
    picture = Image.new("RGB", (width * len(modes), height + 30), "white")
    pen = ImageDraw.Draw(picture)
    for number, mode in enumerate(modes):
        left = number * width

        def place(share: float, db: float, left: int = left) -> tuple[float, float]:
            across = (min(max(share, 0.2), 1.0) - 0.2) / 0.8 * (width - 2 * margin)
            up = (min(max(db, 10), 65) - 10) / 55 * (height - 2 * margin)
            return left + margin + across, height - margin - up

        pen.text((left + margin, 10), f"{mode}: PSNR in dB over the share of operations", "black")
        for db in range(10, 66, 10):
            pen.line([place(0.2, db), place(1, db)], "gainsboro")
            pen.text((left + 20, place(0.2, db)[1] - 6), f"{db}", "black")
        for tenth in range(2, 11, 2):
            pen.text((place(tenth / 10, 10)[0] - 8, height - margin + 8), f"{tenth / 10}", "black")
        for name, colour in zip(names, colours, strict=True):
            own = [row for row in rows if row["mode"] == mode and row["way"] == name]
            points = sorted(place(row["operations"], row["psnr"]) for row in own)
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
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--ways", nargs="+", default=[], help="by their names, as in the table")
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
    print("| mode | way | setting | calls | operations | time | PSNR | worst | SSIM | right |")
    print("|" + "---|" * 10)
    for mode in options.names or BLOCKS:
        rows += measure_mode(toy, mode, scenes, options)
    if options.out:
        options.out.write_text(json.dumps(rows), "utf-8")


if __name__ == "__main__":
    main()
