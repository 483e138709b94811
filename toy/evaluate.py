"""Scores of the toy set in every mode, on scenes it was never trained on.

    python toy/evaluate.py [MODE ...] [--seeds 2] [--scenes held-out|trained|all] [--sheet FOLDER]

Films are made by `skyreels_model` alone and judged by the toy world's instruments. A name counts as
right only if 90 % of a window's frames show it; a speed or position is given as it was measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from skyreels_model.model.identity import CAUSAL  # noqa: E402
from skyreels_model.plan.windows import picture_frame  # noqa: E402
from skyreels_model.rollout.conditions import Conditions  # noqa: E402
from toy import measure  # noqa: E402
from toy.continuity import FrameError, Span, frame_errors  # noqa: E402
from toy.lockstep import make_together  # noqa: E402
from toy.toyset import OVERLAP, WINDOW, ToySet, blocks_plan, toy_plan  # noqa: E402
from toy.training.latents import MIDDLE  # noqa: E402
from toy.world import FPS, HELD_OUT, SCENES, SHAPES, SIZE, TRAINED, Scene, render, step_length  # noqa: E402

NAMES = ("background", "colour", "shape", "direction")
CHOICES = {"held-out": HELD_OUT, "trained": TRAINED, "all": SCENES}
KEY_LATENT = 5  # of the film in which key pictures are tried: frame 17
SLIDING_KEY = 7  # the same of a sliding film
ROUND = round(SIZE / step_length())  # frames
REMADE = 0.5  # of the way to noise
INSIDE = (SIZE / 4, 3 * SIZE / 4)  # px, where films that are given pictures begin
TOGETHER = 16  # films
KINDS = {"t2v": "T2V", "i2v": "I2V", CAUSAL: CAUSAL}  # of the modes that another set makes
BLOCKS_FRAMES = 105
LEADING_FRAMES, FOLLOWING_FRAMES = 16, 24  # made before another film; of that film


@dataclass(frozen=True)
class Take:
    """A film of a scene, the spans to be judged, and the pictures it was given, by frame."""

    scene: Scene
    frames: np.ndarray
    spans: list[Span]
    fps: int = FPS
    given: dict[int, np.ndarray] = field(default_factory=dict)

    def scores(self) -> list[measure.Score]:
        return measure.scores(self.frames, self.scene.caption, self.spans, self.fps)

    def errors(self) -> list[FrameError]:
        """How far the film is from the given pictures."""
        if not self.given:
            return []
        return frame_errors(self.frames[list(self.given)], np.stack(list(self.given.values())))


Mode = Callable[[dict[str, ToySet], Scene, int], Take]


def truth(scene: Scene, seed: int, frames: int, begin: tuple[float, float] = INSIDE) -> np.ndarray:
    """The scene as it is, from a start that the seed decides, both coordinates in `begin`, px."""
    start = np.random.default_rng([7, seed]).uniform(*begin, 2)
    return render(scene, frames, (float(start[0]), float(start[1])))


def text_film(ar_step: int, fps: int = FPS) -> Mode:
    """One window from text alone."""

    def make(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
        plan = toy_plan(ar_step=ar_step, fps=fps)
        return Take(scene, toys["DF"].film(scene.caption, plan, seed), [(0, WINDOW)], fps)

    return make


def long_film(history: str, ar_step: int = 5) -> Mode:
    """Three windows from text alone; judged are the continued ones."""

    def make(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
        plan = toy_plan(3, ar_step, history=history)
        spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
        return Take(scene, toys["DF"].film(scene.caption, plan, seed), spans[1:])

    return make


def sliding_film(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
    """One sequence as long as three windows; judged is what no first view shows."""
    plan = dataclasses.replace(toy_plan(3), sliding=True)
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
    return Take(scene, toys["DF"].film(scene.caption, plan, seed), spans[1:])


def given_film(start: int, ar_step: int, key: bool = False, end: bool = False) -> Mode:
    """One window with its first `start` frames given, and pictures on its way."""

    def make(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
        toy, plan = toys["DF"], toy_plan(ar_step=ar_step)
        true = truth(scene, seed, WINDOW + 1)
        keys = [KEY_LATENT] if key else []
        shown = {picture_frame(latent): true[picture_frame(latent)] for latent in keys}
        conditions = Conditions(
            start=toy.latents(true[:start]) if start else None,
            pictures={latent: toy.latents(true[picture_frame(latent)][None]) for latent in keys},
            end=toy.latents(true[WINDOW:]) if end else None,
        )
        frames = toy.film(scene.caption, plan, seed, conditions=conditions)
        if start:
            shown[0] = true[0]
        if end:
            shown[WINDOW - 1] = true[WINDOW - 1]
        begin = start if start > 1 else 0
        return Take(scene, frames, [(begin, WINDOW)], given=shown)

    return make


def loop_film(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
    """As many frames as the shape takes around the world, from its first picture to that again;
    judged twice over, so that the seam is seen, too."""
    toy, plan = toys["DF"], dataclasses.replace(toy_plan(), num_frames=ROUND)
    true = truth(scene, seed, plan.num_frames)
    picture = toy.latents(true[:1])
    film = toy.film(scene.caption, plan, seed, conditions=Conditions(start=picture, end=picture))
    spans = [(0, ROUND), (ROUND, 2 * ROUND)]
    given = {ROUND - 1: true[-1], ROUND: true[0]}
    return Take(scene, np.concatenate([film, film]), spans, given=given)


def leading_film(windows: int, ar_step: int, history: str = "pixels", start: bool = False) -> Mode:
    """A film that leads into another: judged is that it does, and arrives where that begins."""

    def make(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
        toy, plan = toys["DF"], toy_plan(1, ar_step, history=history)
        plan = dataclasses.replace(plan, num_frames=LEADING_FRAMES * windows)
        given = Conditions(
            start=toy.latents(truth(scene, seed, 1)) if start else None,
            following=torch.empty(1, 0, plan.room_after(int(start)), 0, 0),
        )
        plan = plan.fit(given.counts)
        true = truth(scene, seed, plan.num_frames + FOLLOWING_FRAMES)
        behind = true[plan.num_frames :]
        shown = behind[plan.following_start :][: 4 * plan.following + 1]
        given = dataclasses.replace(given, following=toy.latents(shown)[:, :, 1:])
        film = toy.film(scene.caption, plan, seed, conditions=given)
        spans = [plan.new_frames(window) for window in plan.windows()]
        last = {plan.num_frames - 1: true[plan.num_frames - 1]}
        return Take(scene, np.concatenate([film, behind]), sorted(spans), given=last)

    return make


def sliding_pictures(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
    """One sequence with a start, a key and an end picture."""
    toy, plan = toys["DF"], dataclasses.replace(toy_plan(2), sliding=True)
    true = truth(scene, seed, plan.num_frames + 1)
    key = picture_frame(SLIDING_KEY)
    given = Conditions(
        start=toy.latents(true[:1]),
        pictures={SLIDING_KEY: toy.latents(true[key][None])},
        end=toy.latents(true[-1:]),
    )
    frames = toy.film(scene.caption, plan, seed, conditions=given)
    places = [0, key, plan.num_frames - 1]
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
    return Take(scene, frames, spans, given={frame: true[frame] for frame in places})


def remade_film(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
    """Two windows of a film of the other shape regenerated: the motion stays, the shape changes.

    The source begins where films from text alone do: remade from noise, it is one of them.
    """
    toy, plan = toys["DF"], dataclasses.replace(toy_plan(2, 0), denoise=REMADE)
    other = next(shape for shape in SHAPES if shape != scene.shape)
    source = truth(dataclasses.replace(scene, shape=other), seed, plan.num_frames, MIDDLE)
    wanted = truth(scene, seed, plan.num_frames, MIDDLE)
    given = Conditions(source=toy.latents(source))
    frames = toy.film(scene.caption, plan, seed, conditions=given)
    spans = [plan.new_frames(window) for window in plan.windows()]
    return Take(scene, frames, spans, given={i: wanted[i] for i in range(8, plan.num_frames, 16)})


def few_steps(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
    """One window in eight steps of LCM, without guidance."""
    plan = dataclasses.replace(toy_plan(ar_step=2), steps=8)
    frames = toys["DF"].film(scene.caption, plan, seed, "lcm", guidance=1.0)
    return Take(scene, frames, [(0, WINDOW)])


def blocks_film(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
    """A sliding film of the causal set in four steps, without guidance, as distillations make."""
    plan = blocks_plan(BLOCKS_FRAMES)
    film = toys[CAUSAL].film(scene.caption, plan, seed, "lcm", guidance=1.0, blocks=True)
    return Take(scene, film, measure.window_spans(plan.num_frames, plan.window, plan.overlap))


def other_model(kind: str) -> Mode:
    """One window by the T2V or the I2V model, all frames at one noise level."""

    def make(toys: dict[str, ToySet], scene: Scene, seed: int) -> Take:
        plan = toy_plan(ar_step=0)
        first = truth(scene, seed, 1)[0] if kind == "I2V" else None
        frames = toys[kind].film(scene.caption, plan, seed, image=first)
        given = {} if first is None else {0: first}
        return Take(scene, frames, [(0, WINDOW)], given=given)

    return make


MODES: dict[str, Mode] = {
    "text-async": text_film(5),
    "text-sync": text_film(0),
    "text-16fps": text_film(5, 16),
    "start-async": given_film(1, 5),
    "start-sync": given_film(1, 0),
    "extend": given_film(OVERLAP, 5),
    "end": given_film(1, 5, end=True),
    "end-sync": given_film(1, 0, end=True),
    "key": given_film(1, 5, key=True),
    "key-end": given_film(0, 0, key=True, end=True),
    "loop": loop_film,
    "long-pixels": long_film("pixels"),
    "long-latents": long_film("latents"),
    "long-picture": long_film("picture+latents"),
    "long-sync": long_film("pixels", 0),
    "sliding": sliding_film,
    "sliding-pictures": sliding_pictures,
    "prepend": leading_film(1, 5),
    "prepend-sync": leading_film(1, 0),
    "prepend-long": leading_film(3, 5),
    "prepend-latents": leading_film(3, 5, "latents"),
    "video-to-video": remade_film,
    "few-steps": few_steps,
    "between": leading_film(1, 5, start=True),
    "t2v": other_model("T2V"),
    "i2v": other_model("I2V"),
    CAUSAL: blocks_film,
}


def takes(toys: dict[str, ToySet], mode: str, scenes: tuple[Scene, ...], seeds: int) -> list[Take]:
    """A film of each scene with each seed, made together."""
    each = [(scene, 1000 * seed + i) for i, scene in enumerate(scenes) for seed in range(seeds)]
    made: list[Take] = []
    for first in range(0, len(each), TOGETHER):
        part = each[first : first + TOGETHER]
        makes = [functools.partial(_make, mode, scene, seed) for scene, seed in part]
        made += make_together(toys, makes)
    return made


def _make(mode: str, scene: Scene, seed: int, toys: dict[str, ToySet]) -> Take:
    return MODES[mode](toys, scene, seed)


@dataclass(frozen=True)
class Summary:
    """Shares of right names by name, the median speed against what it should be, and pictures.

    position: of each given picture's frame, px, the largest of nine in ten.
    """

    windows: int
    right: dict[str, float]
    speed: float
    position: float
    pictures: float

    @classmethod
    def of(cls, films: list[Take]) -> Summary:
        scores = [score for film in films for score in film.scores()]
        right = {
            name: float(np.mean([getattr(s.shown, name) == getattr(s.asked, name) for s in scores]))
            for name in NAMES
        }
        speeds = [s.speed / s.asked_speed for s in scores if s.ok]
        errors = [error for film in films for error in film.errors()]
        positions = [e.position if np.isfinite(e.position) else SIZE for e in errors]
        return cls(
            len(scores),
            right,
            float(np.median(speeds)) if speeds else float("nan"),
            float(np.percentile(positions, 90)) if errors else float("nan"),
            float(np.mean([e.ok for e in errors])) if errors else float("nan"),
        )

    def __str__(self) -> str:
        names = "  ".join(f"{name} {share:.3f}" for name, share in self.right.items())
        text = f"{self.windows:4} windows  {names}  speed {self.speed:.2f}"
        if np.isfinite(self.pictures):
            text += f"  pictures {self.pictures:.3f}  position {self.position:.2f} px"
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modes", nargs="*", metavar="MODE", help=", ".join(MODES))
    parser.add_argument("--scenes", default="held-out", choices=CHOICES)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--sheet", type=pathlib.Path, help="write contact sheets into this folder")
    options = parser.parse_args()
    unknown = sorted(set(options.modes) - MODES.keys())
    if unknown:
        parser.error(f"mode is {unknown[0]!r}; legal are {', '.join(MODES)}")
    torch.set_num_threads(1)  # more threads cost time at this size
    modes = options.modes or list(MODES)
    kinds = ["DF", *(KINDS[mode] for mode in modes if mode in KINDS)]
    toys = {kind: ToySet.load(kind) for kind in kinds}
    for mode in modes:
        films = takes(toys, mode, CHOICES[options.scenes], options.seeds)
        print(f"{mode:14} {Summary.of(films)}", flush=True)
        if options.sheet:
            options.sheet.mkdir(parents=True, exist_ok=True)
            few = np.concatenate([film.frames[::4] for film in films[:6]])
            measure.write_sheet(options.sheet / f"{mode}.png", few, len(few))


if __name__ == "__main__":
    main()
