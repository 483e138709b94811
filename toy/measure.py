"""Does a film of the toy world show what its prompt says?

    python toy/measure.py FILM.mp4 --workflow API.json [--sheet SHEET.png]

Instruments take frames (T, H, W, 3), float in 0..1 or uint8: one disc on a plain background, on a
torus. They survive the blur of a VAE and of h264. Positions are in px, x to the right, y down.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from toy.world import BACKGROUNDS, COLOURS, DIRECTIONS  # noqa: E402

NOTHING = "none"
MIXED = "mixed"
AGREEMENT = 0.9  # share of a span's frames that must show the same thing
LEAST_CONTRAST = 0.2
LEAST_COVER, MOST_COVER = 0.03, 0.35  # share of the frame; the world's disc covers 0.11
LEAST_CONCENTRATION = 0.6  # of the circular mean; a disc of the world has 0.83, scattered spots 0
COLOUR_TOLERANCE, BACKGROUND_TOLERANCE = 0.35, 0.2
LEAST_SPEED = 0.2  # px per frame; the world's is 0.75
LEAST_DOMINANCE = 2.0  # of the main axis of motion over the other
CAPTION = re.compile(r"a (\w+) circle moving (\w+) on a (\w+) background")

Span = tuple[int, int]  # frames [start, stop)


@dataclass(frozen=True)
class Look:
    """Colour of the disc, background, direction of motion: asked for or measured."""

    colour: str
    background: str
    direction: str


@dataclass(frozen=True)
class Score:
    """What a span of frames shows against what was asked; speed in px per frame."""

    span: Span
    asked: Look
    shown: Look
    speed: float

    @property
    def ok(self) -> bool:
        return self.shown == self.asked


@dataclass(frozen=True)
class SeamJump:
    """Acceleration of the disc where two windows meet, and the median elsewhere, px per frame²."""

    border: int
    at_border: float
    inside: float


@dataclass(frozen=True)
class Discs:
    """The disc in each frame: weight (T, H, W), core pixels (T, H, W), centre (T, 2).

    The centre (x, y) is NaN in a frame that does not hold one disc.
    """

    weight: np.ndarray
    core: np.ndarray
    centre: np.ndarray


def as_float(frames: np.ndarray) -> np.ndarray:
    """Frames as float32 in 0..1; ValueError unless they are (T, H, W, 3), float or uint8."""
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames have shape {frames.shape}; the layout is (T, H, W, 3), T >= 1")
    if frames.dtype == np.uint8:
        return frames.astype(np.float32) / 255
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"frames are {frames.dtype}; legal are uint8 and float in 0..1")
    return frames.astype(np.float32)


def background_colours(frames: np.ndarray) -> np.ndarray:
    """RGB of each frame's background (T, 3): the median, as the disc covers a ninth."""
    return np.median(as_float(frames), axis=(1, 2))


def find_discs(frames: np.ndarray) -> Discs:
    """Segment the disc by its contrast against the background, and locate it on the torus."""
    frames = as_float(frames)
    ground = background_colours(frames)[:, None, None]
    contrast = np.abs(frames - ground).max(axis=3)  # (T, H, W)
    # Well inside the disc, which is the top 11 % of the pixels.
    peak = np.maximum(np.percentile(contrast, 97, axis=(1, 2)), LEAST_CONTRAST)[:, None, None]
    weight = np.clip((contrast / peak - 0.25) / 0.5, 0, 1)
    cover = (contrast > peak / 2).mean(axis=(1, 2))
    x, concentration_x = _circular_mean(weight.sum(axis=1))
    y, concentration_y = _circular_mean(weight.sum(axis=2))
    is_disc = (cover >= LEAST_COVER) & (cover <= MOST_COVER)
    is_disc &= np.minimum(concentration_x, concentration_y) >= LEAST_CONCENTRATION
    centre = np.where(is_disc[:, None], np.stack([x, y], axis=1), np.nan)
    return Discs(weight, contrast > 0.8 * peak, centre)


def _circular_mean(profile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean position (T,) on a ring of N cells weighted by (T, N), and how concentrated it is."""
    size = profile.shape[1]
    turns = np.exp(2j * np.pi * (np.arange(size) + 0.5) / size)
    moment = profile @ turns / np.maximum(profile.sum(axis=1), 1e-9)
    return np.angle(moment) / (2 * np.pi) * size % size, np.abs(moment)


def unwrap(centre: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Centres (T, 2) on a torus of (width, height) -> a track (T, 2) without jumps at the sides.

    Frames without a disc stay NaN; the track goes on behind them by the shortest way.
    """
    track = np.full(centre.shape, np.nan)
    seen = np.flatnonzero(~np.isnan(centre[:, 0]))
    if len(seen):
        steps = np.diff(centre[seen], axis=0)
        steps -= np.round(steps / size) * np.asarray(size)
        track[seen] = centre[seen[0]] + np.concatenate([np.zeros((1, 2)), steps.cumsum(axis=0)])
    return track


def centroid_track(frames: np.ndarray) -> np.ndarray:
    """Unwrapped centre (x, y) of the disc in each frame, (T, 2) in px, NaN where there is none."""
    height, width = frames.shape[1:3]
    return unwrap(find_discs(frames).centre, (width, height))


def background_name(frames: np.ndarray) -> str:
    """black, white or grey; "mixed" where the frames disagree, "none" for anything else."""
    return _common(
        [_nearest(rgb, BACKGROUNDS, BACKGROUND_TOLERANCE) for rgb in background_colours(frames)]
    )


def colour_name(frames: np.ndarray) -> str:
    """red, green, blue or yellow; "mixed" where the frames disagree, "none" for no such disc."""
    frames, discs = as_float(frames), find_discs(frames)
    names = [
        _nearest(np.median(frame[core], axis=0), COLOURS, COLOUR_TOLERANCE)
        if not np.isnan(centre[0])
        else NOTHING
        for frame, core, centre in zip(frames, discs.core, discs.centre, strict=True)
    ]
    return _common(names)


def motion(track: np.ndarray) -> tuple[str, float]:
    """Direction and speed (px per frame) of a track (T, 2), by a straight line through it.

    "none" where it stands nearly still or moves aslant, or where too few frames hold a disc.
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


def seam_jumps(track: np.ndarray, borders: list[int]) -> list[SeamJump]:
    """How unsteady the motion is where a window begins (`borders`: its first new frame).

    Raises ValueError for a border that has not two frames before it and one behind.
    """
    for border in borders:
        if not 2 <= border < len(track) - 1:
            raise ValueError(f"border is frame {border}; it must be 2 to {len(track) - 2}")
    # Entry i is the acceleration at frame i + 1; a jump before frame b shows at b - 1 and at b.
    acceleration = np.linalg.norm(np.diff(track, 2, axis=0), axis=1)
    touched = {border - offset for border in borders for offset in (1, 2)}
    inner = np.delete(acceleration, sorted(touched))
    inside = float(np.nanmedian(inner)) if np.isfinite(inner).any() else float("nan")
    return [SeamJump(b, float(acceleration[b - 2 : b].max()), inside) for b in borders]


def _nearest(rgb: np.ndarray, palette: dict[str, tuple], tolerance: float) -> str:
    distance = {name: float(np.abs(rgb - np.asarray(own)).max()) for name, own in palette.items()}
    name = min(distance, key=lambda key: distance[key])
    return name if distance[name] <= tolerance else NOTHING


def _common(names: list[str]) -> str:
    name, count = Counter(names).most_common(1)[0]
    return name if count >= AGREEMENT * len(names) else MIXED


def parse_caption(caption: str) -> Look:
    """What a prompt of the toy world asks for; ValueError for any other prompt."""
    found = CAPTION.search(caption)
    if found and found[1] in COLOURS and found[2] in DIRECTIONS and found[3] in BACKGROUNDS:
        return Look(colour=found[1], background=found[3], direction=found[2])
    raise ValueError(
        f"caption is {caption!r}; the toy world knows 'a <{'|'.join(COLOURS)}> circle moving "
        f"<{'|'.join(DIRECTIONS)}> on a <{'|'.join(BACKGROUNDS)}> background'"
    )


def window_spans(frames: int, window: int, overlap: int) -> list[Span]:
    """The new frames of each window of a film; ValueError unless 0 < overlap < window."""
    if not 0 < overlap < window:
        raise ValueError(f"overlap is {overlap} and window {window}; legal: 0 < overlap < window")
    stops = [*range(window, frames, window - overlap), frames]
    return list(zip([0, *stops], stops, strict=False))


def scores(frames: np.ndarray, caption: str, spans: list[Span]) -> list[Score]:
    """Measure each span against the caption.

    Motion is taken from the frame before the span on, so that it covers the seam, too.
    Raises ValueError for a caption of another world and for a span outside the frames.
    """
    asked = parse_caption(caption)
    for start, stop in spans:
        if not 0 <= start < stop <= len(frames):
            raise ValueError(f"span is ({start}, {stop}); the film has frames 0 to {len(frames)}")
    track = centroid_track(frames)
    result = []
    for start, stop in spans:
        part = frames[start:stop]
        direction, speed = motion(track[max(start - 1, 0) : stop])
        shown = Look(colour_name(part), background_name(part), direction)
        result.append(Score((start, stop), asked, shown, speed))
    return result


@dataclass(frozen=True)
class Workflow:
    """What an API workflow says of its film; lengths in frames."""

    prompt: str
    frames: int
    window: int
    overlap: int
    fps: float

    @classmethod
    def read(cls, path: pathlib.Path) -> Workflow:
        """From the prompt node and the schedule node; ValueError if not exactly one each."""
        nodes = json.loads(path.read_text(encoding="utf-8"))
        prompt = _only_node(nodes, "SkyReelsV2PromptEncode")["prompt"]
        schedule = _only_node(nodes, "SkyReelsV2Schedule")
        numbers = {name: schedule[name] for name in ("frames", "window", "overlap", "fps")}
        for name, value in {"prompt": prompt, **numbers}.items():
            if isinstance(value, list):
                raise ValueError(f"{name} is a link {value}; it must be written in its node")
        return cls(prompt, **numbers)


def _only_node(nodes: dict[str, dict], class_type: str) -> dict:
    found = [node["inputs"] for node in nodes.values() if node["class_type"] == class_type]
    if len(found) != 1:
        raise ValueError(f"the workflow has {len(found)} nodes {class_type}; exactly one is needed")
    return found[0]


def read_film(path: pathlib.Path) -> np.ndarray:
    """Frames of a video file, (T, H, W, 3) uint8."""
    import av

    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def write_sheet(path: pathlib.Path, frames: np.ndarray, count: int = 32, scale: int = 4) -> None:
    """A PNG of about `count` evenly spaced frames, enlarged, with their numbers; eight a row."""
    from PIL import Image, ImageDraw

    shown = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    height, width = frames.shape[1] * scale, frames.shape[2] * scale
    label, columns = 12, min(8, len(shown))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (width + 2), rows * (height + label + 2)), "dimgray")
    draw = ImageDraw.Draw(sheet)
    pixels = (as_float(frames[shown]) * 255).round().clip(0, 255).astype(np.uint8)
    for place, (number, frame) in enumerate(zip(shown, pixels, strict=True)):
        x, y = place % columns * (width + 2), place // columns * (height + label + 2)
        draw.text((x + 2, y), str(number), fill="white")
        picture = Image.fromarray(frame).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(picture, (x, y + label))
    sheet.save(path, format="PNG")


def report(results: list[Score], prompt: str) -> str:
    """A table of one line a window, and the sum as the last line."""
    lines = ["window  frames     background  colour  direction  speed  ok"]
    for index, score in enumerate(results):
        frames = f"{score.span[0]}-{score.span[1] - 1}"
        shown = score.shown
        lines.append(
            f"{index:6}  {frames:9}  {shown.background:10}  {shown.colour:6}  "
            f"{shown.direction:9}  {score.speed:5.2f}  {'yes' if score.ok else 'NO'}"
        )
    good = sum(score.ok for score in results)
    return "\n".join([*lines, f"{good} of {len(results)} windows show {prompt!r}"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("film", type=pathlib.Path, help="video file")
    parser.add_argument("--workflow", type=pathlib.Path, required=True, help="its API workflow")
    parser.add_argument("--sheet", type=pathlib.Path, help="write a contact sheet (PNG) here")
    options = parser.parse_args()
    workflow, frames = Workflow.read(options.workflow), read_film(options.film)
    if options.sheet:
        write_sheet(options.sheet, frames)
    if len(frames) != workflow.frames:
        print(f"{options.film} has {len(frames)} frames; its workflow says {workflow.frames}")
        return 1
    spans = window_spans(workflow.frames, workflow.window, workflow.overlap)
    results = scores(frames, workflow.prompt, spans)
    print(report(results, workflow.prompt))
    return 0 if all(score.ok for score in results) else 1


if __name__ == "__main__":
    sys.exit(main())
