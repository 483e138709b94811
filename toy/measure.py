"""Does a film of the toy world show what its prompt says?

    python toy/measure.py FILM.mp4 --workflow API.json [--sheet SHEET.png]

Each window's new frames are measured by toy/instruments.py and judged against the caption.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from skyreels_model.plan.film_plan import FilmPlan
from skyreels_model.plan.shots import Shot
from skyreels_model.plan.storyboard import TimedPrompt, parse_storyboard, shot_lengths
from toy.continuity import Span, check_spans  # noqa: E402
from toy.instruments import (  # noqa: E402
    as_float,
    background_name,
    centroid_track,
    colour_name,
    find_figures,
    motion,
    shape_name,
)
from toy.world import FPS, Scene, parse_caption, step_length  # noqa: E402

STORYBOARD = "SkyReelsV2StoryboardText"


@dataclass(frozen=True)
class Score:
    """What a span of frames shows against what was asked; speeds in px per frame."""

    span: Span
    asked: Scene
    shown: Scene
    speed: float
    asked_speed: float

    @property
    def ok(self) -> bool:
        """The scene is the one asked for; its speed is reported, not judged."""
        return self.shown == self.asked

    @property
    def moves(self) -> bool:
        """Shape and direction are the ones asked for, whatever the colours are."""
        asked, shown = self.asked, self.shown
        return (shown.shape, shown.direction) == (asked.shape, asked.direction)


def window_spans(frames: int, window: int, overlap: int) -> list[Span]:
    """The new frames of each window of a film; ValueError unless 0 < overlap < window."""
    if not 0 < overlap < window:
        raise ValueError(f"overlap is {overlap} and window {window}; legal: 0 < overlap < window")
    stops = [*range(window, frames, window - overlap), frames]
    return list(zip([0, *stops], stops, strict=False))


def scores(
    frames: np.ndarray, caption: str, spans: Sequence[Span], fps: float = FPS
) -> list[Score]:
    """Measure each span of frames (T, H, W, 3) against the caption.

    Motion is taken from the frame before the span on, so that it covers the seam, too; how fast it
    should be depends on the film's frames per second. Raises ValueError for a caption of another
    world, for a span outside the frames and for frames that `find_figures` refuses.
    """
    asked = parse_caption(caption)
    check_spans(len(frames), spans)
    figures = find_figures(frames)
    track = centroid_track(figures)
    result = []
    for start, stop in spans:
        part = figures[start:stop]
        direction, speed = motion(track[max(start - 1, 0) : stop])
        shown = Scene(colour_name(part), shape_name(part), background_name(part), direction)
        result.append(Score((start, stop), asked, shown, speed, step_length(fps)))
    return result


@dataclass(frozen=True)
class Take:
    """Frames [start, stop) of a film that begin it or follow a cut, the windows in them of one
    shot, and its prompt."""

    start: int
    stop: int
    prompt: str
    spans: list[Span]


@dataclass(frozen=True)
class Workflow:
    """What an API workflow says of its film: its plan, and the prompt of each shot."""

    plan: FilmPlan
    prompts: list[str]

    @classmethod
    def read(cls, path: pathlib.Path) -> Workflow:
        """From the schedule node, and the storyboard or else the prompt node.

        ValueError if one is absent or there are several, or if a number is a link.
        """
        nodes = json.loads(path.read_text(encoding="utf-8"))
        schedule = _only_node(nodes, "SkyReelsV2Schedule")
        numbers = {name: schedule[name] for name in ("frames", "window", "overlap", "fps")}
        if any(node["class_type"] == STORYBOARD for node in nodes.values()):
            story = _only_node(nodes, STORYBOARD)
            shots = parse_storyboard(_written("text", story), _written("seconds", story))
        else:
            prompt = _written("prompt", _only_node(nodes, "SkyReelsV2PromptEncode"))
            seconds = _written("frames", numbers) / _written("fps", numbers)
            shots = [TimedPrompt(prompt, seconds, cut=False)]
        fps = _written("fps", numbers)
        lengths = shot_lengths([shot.seconds for shot in shots], fps)
        plan = FilmPlan(
            num_frames=sum(lengths),
            window=_written("window", numbers),
            overlap=_written("overlap", numbers),
            fps=fps,
            shots=tuple(Shot(n, shot.cut) for n, shot in zip(lengths, shots, strict=True)),
        )
        return cls(plan, [shot.prompt for shot in shots])

    def takes(self) -> list[Take]:
        """The film's shots, in order."""
        spans: dict[int, list[Span]] = {}
        for window in self.plan.windows():
            spans.setdefault(window.shot, []).append(self.plan.new_frames(window))
        takes, begun = [], 0
        for shot, part in enumerate(self.plan.parts):
            begun = spans[shot][0][0] if part.fresh else begun
            stop = spans[shot][-1][1]
            takes.append(Take(begun, stop, self.prompts[shot], spans[shot]))
        return takes

    def scores(self, frames: np.ndarray) -> list[Score]:
        """Every window of the film against its shot's prompt."""
        found: list[Score] = []
        for take in self.takes():
            # Motion is not measured over a cut.
            inside = [(a - take.start, b - take.start) for a, b in take.spans]
            part = frames[take.start : take.stop]
            for span, score in zip(
                take.spans, scores(part, take.prompt, inside, self.plan.fps), strict=True
            ):
                found.append(replace(score, span=span))
        return found


def _only_node(nodes: dict[str, dict], class_type: str) -> dict:
    found = [node["inputs"] for node in nodes.values() if node["class_type"] == class_type]
    if len(found) != 1:
        raise ValueError(f"the workflow has {len(found)} nodes {class_type}; exactly one is needed")
    return found[0]


def _written(name: str, inputs: dict[str, Any]) -> Any:
    """An input's value; ValueError where it is a link."""
    if isinstance(inputs[name], list):
        raise ValueError(f"{name} is a link {inputs[name]}; it must be written in its node")
    return inputs[name]


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


def report(results: Sequence[Score]) -> str:
    """Each prompt with a table of one line a window, and the sum as the last line."""
    columns = "window  frames     background  colour  shape   direction  speed  asked  ok"
    lines: list[str] = []
    asked = None
    for index, score in enumerate(results):
        if score.asked != asked:
            asked = score.asked
            lines += [f"{asked.caption!r}", columns]
        frames = f"{score.span[0]}-{score.span[1] - 1}"
        shown = score.shown
        lines.append(
            f"{index:6}  {frames:9}  {shown.background:10}  {shown.colour:6}  {shown.shape:6}  "
            f"{shown.direction:9}  {score.speed:5.2f}  {score.asked_speed:5.2f}  "
            f"{'yes' if score.ok else 'NO'}"
        )
    good = sum(score.ok for score in results)
    return "\n".join([*lines, f"{good} of {len(results)} windows show their prompt"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("film", type=pathlib.Path, help="video file")
    parser.add_argument("--workflow", type=pathlib.Path, required=True, help="its API workflow")
    parser.add_argument("--sheet", type=pathlib.Path, help="write a contact sheet (PNG) here")
    options = parser.parse_args()
    workflow, frames = Workflow.read(options.workflow), read_film(options.film)
    if options.sheet:
        write_sheet(options.sheet, frames)
    expected = workflow.plan.num_frames
    if len(frames) != expected:
        print(f"{options.film} has {len(frames)} frames; its workflow says {expected}")
        return 1
    results = workflow.scores(frames)
    print(report(results))
    return 0 if all(score.ok for score in results) else 1


if __name__ == "__main__":
    sys.exit(main())
