"""Does a film of the toy world hold together: at its given frames, over its seams, to its end?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from toy.instruments import (
    BACKGROUND_TOLERANCE,
    COLOUR_TOLERANCE,
    CORE,
    Figures,
    background_difference,
    centroid_track,
    find_figures,
    fit_shapes,
    sharpness,
    torus_offset,
)

REACH = 4  # frames on either side of a cut that tell how the film goes there: a latent frame's
POSITION_TOLERANCE = 2.0  # px; a latent frame of the world moves by 3

Span = tuple[int, int]  # frames [start, stop)


@dataclass(frozen=True)
class FrameError:
    """How a film's frame differs from the picture it was given; NaN where either has no figure.

    position in px on the torus; colour and background: largest difference of a channel, 0..1;
    same_shape: both fit the same shape best.
    """

    position: float
    colour: float
    background: float
    same_shape: bool

    @property
    def ok(self) -> bool:
        return (
            self.position <= POSITION_TOLERANCE
            and self.colour <= COLOUR_TOLERANCE
            and self.background <= BACKGROUND_TOLERANCE
            and self.same_shape
        )


def frame_errors(frames: np.ndarray, images: np.ndarray) -> list[FrameError]:
    """Compare frames of a film (N, H, W, 3) with the pictures given for them, in pairs.

    For first, last and key frames: `frame_errors(film[[0, 48, -1]], images)`. Raises ValueError
    where the shapes differ and for what `find_figures` refuses.
    """
    if frames.shape != images.shape:
        raise ValueError(
            f"frames have shape {frames.shape} and images {images.shape}; they must be equal"
        )
    film, given = find_figures(frames), find_figures(images)
    position = np.linalg.norm(torus_offset(film.centre - given.centre, film.size), axis=1)
    colour = np.abs(film.colour - given.colour).max(axis=1)
    background = background_difference(film.ground, given.ground)
    both = film.found & given.found
    shapes = [fit_shapes(figures).error[both].argmin(axis=1) for figures in (film, given)]
    same = np.zeros(len(frames), bool)
    same[both] = shapes[0] == shapes[1]
    return [
        FrameError(float(p), float(c), float(b), bool(s))
        for p, c, b, s in zip(position, colour, background, same, strict=True)
    ]


@dataclass(frozen=True)
class Cut:
    """How the frames before a cut go on after it; NaN where too few of them hold a figure.

    position: gap of the track, px; velocity: its change, px per frame; colour and background:
    change of the mean, largest channel, 0..1.
    """

    position: float
    velocity: float
    colour: float
    background: float


@dataclass(frozen=True)
class SeamJump:
    """The cut where a window begins, and the median over the cuts that touch no border."""

    border: int
    at_border: Cut
    inside: Cut


def seam_jumps(figures: Figures, borders: Sequence[int]) -> list[SeamJump]:
    """How the film goes over its seams (`borders`: each window's first new frame).

    Raises ValueError for a border with fewer than `REACH` frames on either side.
    """
    legal = range(REACH, len(figures) - REACH + 1)
    for border in borders:
        if border not in legal:
            raise ValueError(
                f"border is frame {border}; in a film of {len(figures)} frames it must be "
                f"{REACH} to {len(figures) - REACH}"
            )
    if not borders:
        return []
    cuts = _all_cuts(figures)  # (cuts, 4)
    inner = [cut for cut in legal if min(abs(cut - border) for border in borders) >= REACH]
    known = cuts[np.asarray(inner, int) - REACH]
    known = known[~np.isnan(known).any(axis=1)]
    inside = Cut(*np.median(known, axis=0).tolist() if len(known) else [float("nan")] * 4)
    return [SeamJump(b, Cut(*cuts[b - REACH].tolist()), inside) for b in borders]


def _all_cuts(figures: Figures) -> np.ndarray:
    """The fields of `Cut` at every frame from REACH to T - REACH, (T - 2 REACH + 1, 4)."""
    track = centroid_track(figures)
    pieces = np.lib.stride_tricks.sliding_window_view(track, REACH, axis=0)  # (N, 2, REACH)
    time = np.arange(REACH) - (REACH - 1) / 2
    mean, slope = pieces.mean(axis=2), pieces @ time / (time @ time)  # (N, 2)
    before, after = slice(None, -REACH), slice(REACH, None)
    # Both straight lines meet half a frame from the cut.
    gap = mean[after] - mean[before] - REACH / 2 * (slope[after] + slope[before])
    change = [np.linalg.norm(gap, axis=1), np.linalg.norm(slope[after] - slope[before], axis=1)]
    for colours in (figures.colour[:, None], figures.ground):
        means = np.lib.stride_tricks.sliding_window_view(colours, REACH, axis=0).mean(axis=-1)
        change.append(background_difference(means[after], means[before]))
    return np.stack(change, axis=1)


@dataclass(frozen=True)
class SpanStatistics:
    """Mean and standard deviation of each channel (3,), of the background and of the figure's
    core, and the median sharpness, over a span of frames; NaN without a figure."""

    span: Span
    background_mean: np.ndarray
    background_std: np.ndarray
    figure_mean: np.ndarray
    figure_std: np.ndarray
    sharpness: float

    @property
    def colours(self) -> np.ndarray:
        """All of its numbers in units of colour, (4, 3)."""
        return np.stack(
            [self.background_mean, self.background_std, self.figure_mean, self.figure_std]
        )


def span_statistics(figures: Figures, span: Span) -> SpanStatistics:
    """Statistics of one span; ValueError for a span outside the frames."""
    check_spans(len(figures), [span])
    part = figures[span[0] : span[1]]
    rows = part.ground.reshape(-1, 3)
    core = part.frames[part.opacity > CORE]
    if not len(core):
        core = np.full((1, 3), np.nan)
    sharp = sharpness(part)[part.found]
    return SpanStatistics(
        span,
        rows.mean(axis=0),
        rows.std(axis=0),
        core.mean(axis=0),
        core.std(axis=0),
        float(np.median(sharp)) if len(sharp) else float("nan"),
    )


def check_spans(frames: int, spans: Sequence[Span]) -> None:
    """ValueError for an empty span and for one outside a film of so many frames."""
    for start, stop in spans:
        if not 0 <= start < stop <= frames:
            raise ValueError(f"span is ({start}, {stop}); the film has frames 0 to {frames}")


@dataclass(frozen=True)
class Drift:
    """How a film's statistics move away from its first window.

    deviation: largest change of a mean or standard deviation of a channel against the first
    window, 0..1. slope: its steepest straight line, per window. sharpness: the least as a share of
    the first window's. NaN where a window holds no figure.
    """

    spans: tuple[SpanStatistics, ...]
    deviation: float
    slope: float
    sharpness: float


def drift(figures: Figures, spans: Sequence[Span]) -> Drift:
    """Statistics of each span and their drift; ValueError for no spans or one outside the film."""
    if not spans:
        raise ValueError("spans are empty; drift needs at least one span of frames")
    statistics = tuple(span_statistics(figures, span) for span in spans)
    colours = np.stack([one.colours for one in statistics]).reshape(len(spans), -1)  # (N, 12)
    sharp = np.asarray([one.sharpness for one in statistics])
    time = np.arange(len(spans)) - (len(spans) - 1) / 2
    slope = time @ colours / max(time @ time, 1)
    return Drift(
        statistics,
        float(np.abs(colours - colours[0]).max()),
        float(np.abs(slope).max()),
        float((sharp / sharp[0]).min()),
    )
