"""What frames of the toy world show: background, figure, its colour, shape, path and sharpness.

Frames are (T, H, W, 3) with H = W, float in 0..1 or uint8: one figure (a circle or a bar) before a
background whose rows are plain, on a torus. `find_figures` measures them once; everything else
reads its answer. The instruments survive the blur of a VAE and of h264. Positions are in px, x to
the right, y down. "none" is something that the world does not have, "mixed" that frames disagree.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from toy.world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES, background, coverage

NOTHING = "none"
MIXED = "mixed"
AGREEMENT = 0.9  # share of the frames that must show the same thing
LEAST_CONTRAST = 0.2
LEAST_COVER, MOST_COVER = 0.03, 0.35  # share of the frame; the world's figures cover 0.11
LEAST_CONCENTRATION = 0.55  # of the circular mean; a bar of the world has 0.71, scattered spots 0
COLOUR_TOLERANCE, BACKGROUND_TOLERANCE = 0.35, 0.2
CORE = 0.9  # opacity of pixels well inside a figure
SEARCH = (-1, 0, 1)  # px around the centroid, where a shape is looked for
WORST_FIT = 0.22  # squared error as a share of the shape's own; badly blurred ones have 0.17
CLEAR_FIT = 0.7  # most that the better shape's error may be of the other's
LEAST_VOTES = 0.5  # share of the frames whose shape must be clear
LEAST_SPEED = 0.2  # px per frame; the world's is 0.75 at 24 frames per second
LEAST_DOMINANCE = 2.0  # of the main axis of motion over the other


@dataclass(frozen=True)
class Figures:
    """The measured figure of each frame; NaN, and opacity 0, in a frame that does not hold one.

    frames (T, H, W, 3); ground: each row's background colour (T, H, 3); colour: the figure's
    (T, 3); opacity: how much it covers of each pixel (T, H, W), 0..1 but for noise; centre (T, 2)
    as (x, y).
    """

    frames: np.ndarray
    ground: np.ndarray
    colour: np.ndarray
    opacity: np.ndarray
    centre: np.ndarray

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, part: slice) -> Figures:
        return Figures(*(getattr(self, field.name)[part] for field in fields(self)))

    @property
    def size(self) -> int:
        return self.frames.shape[1]

    @property
    def found(self) -> np.ndarray:
        """Which frames hold one figure, (T,)."""
        return ~np.isnan(self.centre[:, 0])


def as_float(frames: np.ndarray) -> np.ndarray:
    """Frames as float32 in 0..1; ValueError unless they are (T, H, W, 3), float or uint8."""
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames have shape {frames.shape}; the layout is (T, H, W, 3), T >= 1")
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / 255
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"frames are {frames.dtype}; legal are uint8 and float in 0..1")
    return frames.astype(np.float32)


def find_figures(frames: np.ndarray) -> Figures:
    """Segment the figure by its contrast against the background, and locate it on the torus.

    Raises ValueError for frames that are not square or what `as_float` refuses.
    """
    frames = as_float(frames)
    if frames.shape[1] != frames.shape[2]:
        raise ValueError(f"frames have shape {frames.shape}; the toy world is square, H = W")
    # A bar and its blur reach over half of a row, which moves the row's median a little; the
    # columns far from the first guess of the centre do not know of it.
    weight, _ = _stand_out(frames, _rows_in_line(np.median(frames, axis=2)))
    ground = _beside(frames, _centroid(weight)[0])
    weight, core = _stand_out(frames, ground)
    centre, concentration = _centroid(weight)
    cover = (weight >= 0.5).mean(axis=(1, 2))
    found = (cover >= LEAST_COVER) & (cover <= MOST_COVER) & (concentration >= LEAST_CONCENTRATION)
    colour = np.full((len(frames), 3), np.nan, np.float32)
    for index in np.flatnonzero(found):
        colour[index] = np.median(frames[index][core[index]], axis=0)
    opacity = np.where(found[:, None, None], _opacity(frames, ground, colour), 0)
    # Unlike contrast, opacity is not stronger where a graded background differs more.
    centre, _ = _centroid(np.clip((opacity - 0.1) / 0.8, 0, 1))
    return Figures(frames, ground, colour, opacity, np.where(found[:, None], centre, np.nan))


def _rows_in_line(rows: np.ndarray) -> np.ndarray:
    """Rows' colours (T, H, 3), those of a figure that fills most of its row taken from the ground.

    Grounds are plain or graded, so that most rows lie on a straight line; a figure's rows do not.
    """
    height = rows.shape[1]
    places = np.arange(height)
    most, line = np.full(len(rows), -1), rows
    for low, high in itertools.combinations(range(0, height, height // 8), 2):
        slope = (rows[:, high] - rows[:, low]) / (high - low)  # (T, 3)
        tried = rows[:, low, None] + slope[:, None] * (places - low)[:, None]  # (T, H, 3)
        count = (_apart(rows, tried) < LEAST_CONTRAST / 2).sum(axis=1)
        line = np.where((count > most)[:, None, None], tried, line)
        most = np.maximum(most, count)
    off = _apart(rows, line)[..., None] > LEAST_CONTRAST
    return np.where(off, line, rows)


def _apart(colours: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How far colours (..., 3) are from others: the largest channel, (...)."""
    red, green, blue = np.moveaxis(np.abs(colours - others), -1, 0)
    # Several times as fast as the maximum over an axis of three.
    return np.maximum(np.maximum(red, green), blue)


def _stand_out(frames: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far pixels differ from their row (T, H, W), 0..1, and which differ most (T, H, W)."""
    contrast = _apart(frames, ground[:, :, None])
    # Well inside the figure, which is the top 11 % of the pixels.
    peak = np.maximum(np.percentile(contrast, 97, axis=(1, 2)), LEAST_CONTRAST)[:, None, None]
    return np.clip((contrast / peak - 0.25) / 0.5, 0, 1), contrast > 0.8 * peak


def _opacity(frames: np.ndarray, ground: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """How far each pixel is on the way from its row's colour to the figure's, (T, H, W)."""
    way = (colour[:, None] - ground)[:, :, None]  # (T, H, 1, 3)
    length = np.maximum((way**2).sum(axis=3), LEAST_CONTRAST**2)  # (T, H, 1)
    return ((frames - ground[:, :, None]) * way).sum(axis=3) / length


def _beside(frames: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Each row's colour (T, H, 3): the median of the third of the columns farthest from x."""
    width = frames.shape[2]
    offset = np.arange(width) + 0.5 - centre[:, :1]  # (T, W)
    distance = np.abs((offset + width / 2) % width - width / 2)
    far = np.argsort(-distance, axis=1)[:, : width // 3]
    return np.median(np.take_along_axis(frames, far[:, None, :, None], axis=2), axis=2)


def _centroid(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean position (T, 2) of weights (T, H, W) on a torus, and how concentrated it is (T,)."""
    size = weight.shape[1]
    turns = np.exp(2j * np.pi * (np.arange(size) + 0.5) / size)
    profiles = np.stack([weight.sum(axis=1), weight.sum(axis=2)], axis=1)  # (T, 2, size)
    moment = profiles @ turns / np.maximum(weight.sum(axis=(1, 2)), 1e-9)[:, None]
    return np.angle(moment) / (2 * np.pi) * size % size, np.abs(moment).min(axis=1)


def background_difference(ground: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far rows (..., H, 3) differ: the largest channel, in the worst row but a quarter."""
    return np.percentile(_apart(ground, other), 75, axis=-1)


def background_name(figures: Figures) -> str:
    """Name of the background, "mixed" or "none"."""
    rows = [background(name, figures.size) for name in BACKGROUNDS]
    distance = np.stack([background_difference(figures.ground, row) for row in rows], axis=1)
    return common(_nearest(distance, tuple(BACKGROUNDS), BACKGROUND_TOLERANCE))


def colour_name(figures: Figures) -> str:
    """Name of the figure's colour, "mixed" or "none"."""
    palette = np.asarray(list(COLOURS.values()))
    distance = _apart(figures.colour[:, None], palette)  # (T, colours)
    return common(_nearest(distance, tuple(COLOURS), COLOUR_TOLERANCE))


def _nearest(distance: np.ndarray, names: Sequence[str], tolerance: float) -> list[str]:
    """The name of the least distance in each row of (T, names)."""
    best = distance.argmin(axis=1)
    return [
        names[index] if row[index] <= tolerance else NOTHING
        for index, row in zip(best, distance, strict=True)
    ]


def common(names: Sequence[str]) -> str:
    """What at least `AGREEMENT` of the names say, else "mixed"."""
    name, count = Counter(names).most_common(1)[0]
    return name if count >= AGREEMENT * len(names) else MIXED


@dataclass(frozen=True)
class Fit:
    """The world's shapes laid over measured figures; NaN where there is none.

    error (T, shapes): squared difference as a share of the shape's own square. coverage (T, H, W):
    of the best shape at its best place.
    """

    error: np.ndarray
    coverage: np.ndarray


def fit_shapes(figures: Figures) -> Fit:
    """Each shape, edges as soft as the world's, around the centroid.

    Compared are opacities, which are free of the frame's own colours.
    """
    error = np.full((len(figures), len(SHAPES)), np.inf)
    least = np.full(len(figures), np.inf)
    best = np.zeros(figures.opacity.shape)
    centre = np.nan_to_num(figures.centre)
    for column, shape in enumerate(SHAPES):
        for offset in itertools.product(SEARCH, SEARCH):
            cover = coverage(shape, centre + offset, figures.size)
            missed = ((cover - figures.opacity) ** 2).sum(axis=(1, 2))
            share = missed / (cover**2).sum(axis=(1, 2))  # (T,)
            error[:, column] = np.minimum(error[:, column], share)
            best = np.where((share < least)[:, None, None], cover, best)
            least = np.minimum(least, share)
    error[~figures.found] = np.nan
    best[~figures.found] = np.nan
    return Fit(error, best)


def shape_name(figures: Figures) -> str:
    """Name of the shape, "mixed", or "none" also where too few frames show it clearly."""
    votes = []
    for found, row in zip(figures.found, fit_shapes(figures).error, strict=True):
        order = np.argsort(row)
        if not found or row[order[0]] > WORST_FIT:
            votes.append(NOTHING)
        elif row[order[0]] <= CLEAR_FIT * row[order[1]]:
            votes.append(SHAPES[order[0]])
    return common(votes) if len(votes) >= LEAST_VOTES * len(figures) else NOTHING


def sharpness(figures: Figures) -> np.ndarray:
    """Steepness of each figure's edge: 1 as in the world, 0 none, (T,); NaN without a figure.

    The gradient of the opacity along the true one, as a share of the true one's energy: it falls
    with every blur, and noise, which has no direction, does not raise it.
    """
    cover = fit_shapes(figures).coverage
    true, seen = _gradient(cover), _gradient(figures.opacity)
    energy = (true**2).sum(axis=(0, 2, 3))
    return np.where(figures.found, (true * seen).sum(axis=(0, 2, 3)) / energy, np.nan)


def _gradient(image: np.ndarray) -> np.ndarray:
    """Central differences on the torus: (T, H, W) -> (2, T, H, W)."""
    return np.stack([np.roll(image, -1, axis) - np.roll(image, 1, axis) for axis in (1, 2)]) / 2


def torus_offset(offset: np.ndarray, size: int) -> np.ndarray:
    """The shortest of an offset's equals on a torus."""
    return offset - np.round(offset / size) * size


def centroid_track(figures: Figures) -> np.ndarray:
    """Centre (x, y) in each frame without jumps at the sides, (T, 2) in px.

    Frames without a figure are NaN; the track goes on after them by the shortest way.
    """
    track = np.full(figures.centre.shape, np.nan)
    seen = np.flatnonzero(figures.found)
    if len(seen):
        steps = torus_offset(np.diff(figures.centre[seen], axis=0), figures.size)
        steps = np.concatenate([np.zeros((1, 2)), steps.cumsum(axis=0)])
        track[seen] = figures.centre[seen[0]] + steps
    return track


def motion(track: np.ndarray) -> tuple[str, float]:
    """Direction and speed (px per frame) of a track (T, 2), by a straight line through it.

    "none" where it stands nearly still or moves aslant, or where too few frames hold a figure.
    """
    seen = np.flatnonzero(~np.isnan(track[:, 0]))
    if len(seen) < max(2, AGREEMENT * len(track)):
        return NOTHING, 0.0
    slope = np.polyfit(seen, track[seen], 1)[0]  # (2,)
    main = int(np.abs(slope).argmax())
    speed = float(np.abs(slope[main]))
    if speed < LEAST_SPEED or speed < LEAST_DOMINANCE * abs(slope[1 - main]):
        return NOTHING, speed
    unit = tuple(int(np.sign(slope[main])) if axis == main else 0 for axis in (0, 1))
    return next(name for name, step in DIRECTIONS.items() if step == unit), speed
