"""What a velocity in bf16 rounds, ours against the reference's semantics, at the published widths.

    python benchmarks/precision.py [--layers 30]

Random weights and inputs; relative errors against float32, of one answer and guided at 6. On a
card, and of the reference's own code, `benchmarks/gpu.py --only precision` measures the same.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from dataclasses import replace

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from devtools.rounding import Size, rounding_errors  # noqa: E402
from toy.random_weights import PUBLISHED  # noqa: E402

# 48 and 120 tokens: a processor multiplies slowly in bf16.
SHORT, LONGER = Size(), Size(3, 16, 10, 64)
CASES = (
    ("DF-1.3B-540P", 30, SHORT),
    ("DF-1.3B-540P", 4, LONGER),
    ("I2V-1.3B-540P", 4, LONGER),
    ("DF-14B-540P", 2, LONGER),
    ("I2V-14B-540P", 1, LONGER),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=30, help="at most so many")
    most = parser.parse_args().layers
    print(
        "| model | layers | tokens | ours | reference | ratio | ours guided | reference | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, layers, size in CASES:
        # The frame rate's embedding is float32 in both, and left out of the reference here.
        config = replace(PUBLISHED[name], num_layers=min(layers, most), fps_embedding=False)
        ours, theirs = rounding_errors(config, size)
        cells = [f"{a:.4f} | {b:.4f} | {a / b:.2f}" for a, b in zip(ours, theirs, strict=True)]
        tokens = size.frames * size.height * size.width // 4
        print(f"| {name} | {config.num_layers} | {tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
