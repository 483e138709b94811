"""How films would scale over GPUs: a simulation, from operations, bytes and speeds that you state.

    python benchmarks/scale.py [--model 14B] [--tflops 400] [--link 200] [--plot scale.svg]

Operations and bytes are those of our forward (`parallel.traffic`). What a card computes a second
and what a link carries are stated, not measured: by default a card of the H100's kind and NVLink.
What no GPU shares (VAE, solver, start) is a stated time as well. Each film is made by a group of
GPUs of one machine, and groups work side by side: for every number of GPUs and films the best size
of a group is chosen.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from skyreels_model.parallel.degrees import Degrees, choose_degrees  # noqa: E402
from skyreels_model.parallel.shards import Shards  # noqa: E402
from skyreels_model.parallel.traffic import ForwardSizes, count_sent  # noqa: E402

MODELS = {"1.3B": (1536, 8960, 12, 30), "14B": (5120, 13824, 40, 40)}
GPUS, FILMS = (1, 2, 4, 8, 16, 32, 64), (1, 10, 100, 1000)
PROMPTS, PATCH, TEXT = 2, 64, 512
STOPS = 0.5  # of what so many GPUs could do, below which more of them hardly pay


@dataclass(frozen=True)
class Speeds:
    """flops: a second and card. link: bytes a second that a card sends. machine: cards in one.

    alone: seconds of a film that one card works and no other can help. start: of a group, once.
    """

    flops: float
    link: float
    machine: int
    alone: float
    start: float


@dataclass(frozen=True)
class Film:
    """A film's model calls, each with its two prompts."""

    sizes: ForwardSizes
    hidden: int
    heads: int
    calls: int

    def seconds(self, gpus: int, speeds: Speeds) -> float:
        """Time of the film on a group of so many GPUs."""
        degrees = choose_degrees(gpus, self.heads)
        sent = count_sent(self.sizes, degrees, 0)
        attention, rest = self.operations(degrees)
        # A ring passes keys on while it attends to the last ones.
        ring = max(attention / speeds.flops, sent.passed / speeds.link)
        exchange = (sent.exchanged + sent.joined) / speeds.link
        return speeds.alone + self.calls * (ring + rest / speeds.flops + exchange)

    def operations(self, degrees: Degrees) -> tuple[float, float]:
        """Of one rank in a model call: in attention, and in all else, with what is filled up."""
        sizes = self.sizes
        groups = min(degrees.prompts, sizes.batch)
        shards = Shards(sizes.batch, sizes.frames, sizes.places, degrees.sequence, groups)
        tokens, own = sizes.frames * sizes.places, sizes.frames * shards.width
        products = 2 * own * sizes.dim * (6 * sizes.dim + 2 * self.hidden)  # text's own: < 1 %
        text = 4 * own * TEXT * sizes.dim
        attention = 4 * own * tokens * sizes.dim
        each = shards.most * sizes.blocks
        return each * attention, each * (products + text)


def best_group(film: Film, gpus: int, films: int, speeds: Speeds) -> tuple[int, float]:
    """The size of group that makes so many films soonest, and their time."""
    sizes = [n for n in range(1, min(gpus, speeds.machine) + 1) if gpus % n == 0]

    def total(size: int) -> float:
        rounds = math.ceil(films / (gpus // size))
        return speeds.start + rounds * film.seconds(size, speeds)

    best = min(sizes, key=total)
    return best, total(best)


def draw(curves: dict[str, list[float]], gpus: Sequence[int]) -> str:
    """An SVG picture of speed-ups over numbers of GPUs, both axes in powers of two."""
    width, height, margin, shades = 640, 420, 56, ("#1b6", "#06c", "#c60", "#a0c")

    def place(number: float, speedup: float) -> str:
        x = margin + math.log2(number) / math.log2(gpus[-1]) * (width - 2 * margin)
        y = (
            height
            - margin
            - math.log2(max(1, speedup)) / math.log2(gpus[-1]) * (height - 2 * margin)
        )
        return f"{x:.1f},{y:.1f}"

    def line(points: str, style: str) -> str:
        return f'<polyline fill="none" points="{points}" {style}/>'

    def text(at: str, words: str, colour: str = "#333") -> str:
        x, y = at.split(",")
        return f'<text x="{x}" y="{y}" font-size="13" fill="{colour}">{words}</text>'

    ideal = " ".join(place(n, n) for n in gpus)
    parts = [line(ideal, 'stroke="#bbb" stroke-dasharray="4"')]
    for (name, values), shade in zip(curves.items(), shades, strict=False):
        points = [place(n, v) for n, v in zip(gpus, values, strict=True)]
        parts.append(line(" ".join(points), f'stroke="{shade}" stroke-width="2"'))
        parts.append(text(points[-1], name, shade))
    parts += [text(f"{place(n, 1).split(',')[0]},{height - margin + 20}", str(n)) for n in gpus]
    parts.append(text(f"{margin},24", "speed-up over one GPU, by GPUs (simulated)"))
    frame = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {frame} font-family="sans-serif">'
    return "\n".join([begin, *parts, "</svg>\n"])


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="14B")
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--height", type=int, default=544)
    parser.add_argument("--latents", type=int, default=25, help="latent frames of a window")
    parser.add_argument("--calls", type=int, default=90, help="model calls of a film")
    parser.add_argument("--tflops", type=float, default=400, help="a card does a second")
    parser.add_argument("--link", type=float, default=200, help="GB a second that a card sends")
    parser.add_argument("--machine", type=int, default=8, help="GPUs in a machine")
    parser.add_argument("--alone", type=float, default=20, help="seconds a film on one GPU: VAE")
    parser.add_argument("--start", type=float, default=60, help="seconds until a model is loaded")
    parser.add_argument("--plot", type=pathlib.Path, help="an .svg file")
    return parser.parse_args()


def main() -> None:
    given = read_arguments()
    dim, hidden, heads, blocks = MODELS[given.model]
    places = given.width // 16 * (given.height // 16)
    sizes = ForwardSizes(PROMPTS, given.latents, places, dim, blocks, PATCH)
    film = Film(sizes, hidden, heads, given.calls)
    speeds = Speeds(given.tflops * 1e12, given.link * 1e9, given.machine, given.alone, given.start)
    curves: dict[str, list[float]] = {}
    for films in FILMS:
        print("| films | GPUs | GPUs a film | hours | speed-up | of ideal |")
        print("|---|---|---|---|---|---|")
        _, alone = best_group(film, 1, films, speeds)
        ends = None
        for gpus in GPUS:
            group, seconds = best_group(film, gpus, films, speeds)
            speedup = alone / seconds
            curves.setdefault(f"{films} films", []).append(speedup)
            share = f"{speedup:.1f} | {speedup / gpus:.0%} |"
            print(f"| {films} | {gpus} | {group} | {seconds / 3600:.2f} | {share}")
            if ends is None and speedup < STOPS * gpus:
                ends = gpus
        told = f"stops scaling at {ends} GPUs" if ends else "scales to the end"
        print(f"\n{films} films: {told}\n")
    if given.plot:
        given.plot.write_text(draw(curves, GPUS), encoding="utf-8")


if __name__ == "__main__":
    main()
