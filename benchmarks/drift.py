"""How far the colours of a long film drift, by the way over its seams: a table on the toy world.

    python benchmarks/drift.py [--seconds 60] [--scenes 2] [--recoloured FOLDER] [--sheet FILE]

"reference" is the reference's way: pixels, prefix noise 20, the solver as shipped. The meter is the
nodes' own: the largest shift of a window's latent channels against the first window's, in standard
deviations. Frame, background and figure are drift on decoded frames: the largest change of a mean
or standard deviation of a colour channel (0..1) against the first window, over all windows, and in
brackets its change from the first 15 % of the frames to the last 15 % (the start-end contrast of
Zhang and Agrawala 2025, arXiv:2504.12626). The slope is the steepest straight line through the
windows in background and figure. Seams, and in brackets what is between any two frames inside: the
gap of the figure's path in px, and the largest change of a channel's mean over the picture. With
FOLDER, from `toy/recolour.py`, films begin with a picture in any colours, which no prompt tells,
and windows are right by shape and direction.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import numpy as np
import torch
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from skyreels_model.drift import measure as measure_drift  # noqa: E402
from skyreels_model.drift import statistics  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout.conditions import Conditions  # noqa: E402
from skyreels_model.rollout.film import Film  # noqa: E402
from toy import measure  # noqa: E402
from toy.continuity import Drift, drift, seam_jumps  # noqa: E402
from toy.instruments import find_figures  # noqa: E402
from toy.toyset import ToySet, toy_plan  # noqa: E402
from toy.training.scenes import any_colours  # noqa: E402
from toy.world import FPS, HELD_OUT, SIZE, Scene  # noqa: E402

ENDS = 0.15  # of the frames
SHOWN = 16  # frames of a film in the sheet
WAYS = {
    "reference": ({"history": "pixels"}, "unipc_as_shipped"),
    "pixels": ({"history": "pixels"}, "unipc"),
    "pixels, anchor 0.5": ({"history": "pixels", "anchor": 0.5}, "unipc"),
    "pixels, anchor 1": ({"history": "pixels", "anchor": 1.0}, "unipc"),
    "pixels, no prefix noise": ({"history": "pixels", "prefix_noise": 0}, "unipc"),
    "latents": ({"history": "latents"}, "unipc"),
    "picture+latents": ({"history": "picture+latents"}, "unipc"),
    "picture+latents, anchor 1": ({"history": "picture+latents", "anchor": 1.0}, "unipc"),
    "sliding": ({"sliding": True}, "unipc"),
}


def meter(film: Film) -> float:
    """The largest shift of a window's own latents against the first window's."""
    windows = zip(film.plan.windows(), film.finished, strict=True)
    own = [statistics(latents[:, :, window.repeated :]) for window, latents in windows]
    return max(measure_drift(0, one, own[0]).shift for one in own)


@dataclasses.dataclass(frozen=True)
class Row:
    """What the table tells of a film; see the top."""

    meter: float
    frame: float
    background: float
    figure: float
    frame_ends: float
    background_ends: float
    figure_ends: float
    slope: float
    sharpness: float
    right: float
    seam: float
    inside: float
    step: float
    step_inside: float


def largest_changes(frames: np.ndarray, found: Drift) -> tuple[float, float, float]:
    """Of the colours of whole frames, background and figure against the first span's."""
    parts = [frames[slice(*one.span)] for one in found.spans]
    whole = np.stack([np.stack([part.mean((0, 1, 2)), part.std((0, 1, 2))]) for part in parts])
    colours = np.stack([one.colours for one in found.spans])  # (N, 4, 3)
    changes = [np.abs(c - c[0]) for c in (whole, colours[:, :2], colours[:, 2:])]
    frame, background, figure = (float(np.nanmax(change)) for change in changes)
    return frame, background, figure


def colour_steps(frames: np.ndarray, borders: list[int]) -> tuple[float, float]:
    """Mean change of the whole picture's colour into the borders' frames, and into all others."""
    steps = np.abs(np.diff(frames.mean((1, 2)), axis=0)).max(axis=1)
    at_border = np.isin(np.arange(1, len(frames)), borders)
    return float(steps[at_border].mean()), float(steps[~at_border].mean())


def make(
    toy: ToySet, scene: Scene, plan: FilmPlan, seed: int, solver: str, recoloured: bool
) -> Film:
    if not recoloured:
        return toy.make(scene.caption, plan, seed, solver)
    rng = np.random.default_rng([7, seed])
    picture = any_colours(rng, scene, rng.uniform(SIZE / 4, 3 * SIZE / 4, (1, 2)))
    given = Conditions(start=toy.latents(picture))
    return toy.make(scene.colourless, plan, seed, solver, conditions=given)


def measured(made: Film, frames: np.ndarray, scene: Scene, recoloured: bool) -> Row:
    plan = made.plan
    spans = measure.window_spans(plan.num_frames, plan.window, plan.overlap)
    figures = find_figures(frames)
    found = drift(figures, spans)
    borders = [start for start, _ in spans[1:] if start <= plan.num_frames - 4]
    seams = seam_jumps(figures, borders)
    scores = measure.scores(frames, scene.caption, spans)
    right = [score.moves if recoloured else score.ok for score in scores]
    at_border = np.median([seam.at_border.position for seam in seams])
    end = round(ENDS * len(frames))
    ends = [(0, end), (len(frames) - end, len(frames))]
    return Row(
        meter(made),
        *largest_changes(frames, found),
        *largest_changes(frames, drift(figures, ends)),
        found.slope,
        found.sharpness,
        float(np.mean(right)),
        float(at_border),
        seams[0].inside.position,
        *colour_steps(frames, borders),
    )


def sheet(films: list[np.ndarray]) -> Image.Image:
    """A row a film, its frames evenly over the whole."""
    rows = [
        np.concatenate(film[np.linspace(0, len(film) - 1, SHOWN).round().astype(int)], axis=1)
        for film in films
    ]
    picture = Image.fromarray((np.concatenate(rows).clip(0, 1) * 255).round().astype(np.uint8))
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ar-step", type=int, default=5)
    parser.add_argument("--recoloured", type=pathlib.Path, metavar="FOLDER")
    parser.add_argument("--sheet", type=pathlib.Path, metavar="FILE", help="frames of all films")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads cost time at this size
    toy = ToySet.load(recoloured=options.recoloured)
    recoloured = options.recoloured is not None
    frames = round(options.seconds * FPS)
    scenes = HELD_OUT[:: max(1, len(HELD_OUT) // options.scenes)][: options.scenes]
    print(f"{frames} frames, {options.scenes} scenes, ar_step {options.ar_step}\n")
    columns = (
        "way, meter, frame (ends), background (ends), figure (ends), slope a window, "
        "least sharpness, windows right, seam (inside) px, seam (inside) colour"
    )
    print(f"| {' | '.join(columns.split(', '))} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    films = []
    for way in options.ways:
        changes, solver = WAYS[way]
        plan = dataclasses.replace(toy_plan(), num_frames=frames, ar_step=options.ar_step)
        plan = dataclasses.replace(plan, **changes)
        rows = []
        for index, scene in enumerate(scenes):
            film = make(toy, scene, plan, options.seed + index, solver, recoloured)
            films.append(toy.frames(film))
            rows.append(dataclasses.astuple(measured(film, films[-1], scene, recoloured)))
        row = Row(*np.nanmean(rows, axis=0))
        print(
            f"| {way} | {row.meter:.3f} | {row.frame:.3f} ({row.frame_ends:.3f}) | "
            f"{row.background:.3f} ({row.background_ends:.3f}) | "
            f"{row.figure:.3f} ({row.figure_ends:.3f}) | {row.slope:.5f} | "
            f"{row.sharpness:.2f} | {row.right:.2f} | {row.seam:.2f} ({row.inside:.2f}) | "
            f"{row.step:.3f} ({row.step_inside:.3f}) |",
            flush=True,
        )
    if options.sheet:
        sheet(films).save(options.sheet)


if __name__ == "__main__":
    main()
