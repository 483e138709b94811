"""What would be saved exactly: kept keys and values of the text, one time a level, one decode.

    python benchmarks/savings.py

Operations are counted in forwards at full size that are not computed (PyTorch's meta device). The
clock is of the 1.3B width on this processor, where a few thousand tokens make the text weigh most.
"""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).resolve().parent))

import rivals  # noqa: E402, F401
from torch import Tensor  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from skyreels_model.config import ModelConfig  # noqa: E402
from skyreels_model.grid import frame_length, latent_length  # noqa: E402
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.plan.film_plan import FilmPlan  # noqa: E402
from skyreels_model.rollout import Film, SeededNoise, generate  # noqa: E402
from skyreels_model.rollout.history import history_of  # noqa: E402
from skyreels_model.rollout.parts import decode_stretches, film_stretches  # noqa: E402
from toy.random_weights import PUBLISHED  # noqa: E402

ROWS, TEXT = 512, 4096
SIZES = {"256 x 256, 17 frames": (5, 32, 32), "540P, 97 frames": (25, 68, 120)}
SIZES["720P, 121 frames"] = (31, 90, 160)
ROUNDS = 9


def count(config: ModelConfig, size: tuple[int, int, int]) -> dict[str, int]:
    """Operations of a forward, and of its parts, by their names."""
    model = SkyReelsModel(config, dtype=torch.bfloat16, device="meta").requires_grad_(False)
    x = torch.empty(1, config.in_dim, *size, dtype=torch.bfloat16, device="meta")
    text = torch.empty(1, ROWS, TEXT, dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        model(x, torch.empty(1, size[0], device="meta"), text)
    parts = counted.get_flop_counts()

    def named(*ends: str) -> int:
        return sum(sum(c.values()) for name, c in parts.items() if name.endswith(ends))

    return {
        "all": counted.get_total_flops(),
        "keys": named("cross_attn.k", "cross_attn.v"),
        "text": named("SkyReelsModel.text_embedding"),
        "time": named("SkyReelsModel.time_embedding", "SkyReelsModel.time_projection"),
    }


def operations() -> None:
    print("| model | size | operations | text's keys and values | kept, bf16 | time, per frame |")
    print("|---|---|---|---|---|---|")
    for name in ("DF-1.3B-540P", "DF-14B-540P"):
        config = PUBLISHED[name]
        kept = 2 * config.num_layers * ROWS * config.dim * 2
        for label, size in SIZES.items():
            found = count(config, size)
            text = (found["keys"] + found["text"]) / found["all"]
            print(
                f"| {name.removesuffix('-540P')} | {label} | {found['all']:.3g} | {text:.2%} "
                f"| {kept / 1e6:.0f} MB a prompt | {found['time'] / found['all']:.4%} |"
            )


def seconds(run: Callable[[], Any]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def clock() -> None:
    config = ModelConfig(num_layers=2)
    model = SkyReelsModel(config).requires_grad_(False)
    print("\n| tokens | forward | text's keys and values | time of 25 levels | of 2 |")
    print("|---|---|---|---|---|")
    for size in ((5, 16, 30), (9, 34, 60)):
        x, text = torch.randn(1, 16, *size), torch.randn(1, ROWS, TEXT)
        t = torch.rand(1, size[0]) * 1000

        def keys(text: Tensor = text) -> None:
            context = model.text_embedding(text)
            for block in model.blocks:
                block.cross_attn.norm_k(block.cross_attn.k(context))
                block.cross_attn.v(context)

        runs: list[Callable[[], Any]] = [
            lambda: model(x, t, text),  # noqa: B023
            keys,
            lambda: model.embed_time(torch.rand(1, 25) * 1000, None),
            lambda: model.embed_time(torch.rand(1, 2) * 1000, None),
        ]
        with torch.no_grad():
            taken = [[seconds(run) for run in runs] for _ in range(ROUNDS)]
        forward, *parts = (median(column) for column in zip(*taken, strict=True))
        shares = " | ".join(f"{1000 * part:.1f} ms, {part / forward:.2%}" for part in parts)
        print(f"| {size[0] * size[1] * size[2] // 4} | {forward:.2f} s | {shares} |")


def decodes() -> None:
    """How many latents the VAE decodes for a film's seams, and then for its frames."""
    print("\n| windows | latents of the film | decoded for its seams | for its frames |")
    print("|---|---|---|---|")
    for frames in (97, 257, 577):
        plan = FilmPlan(num_frames=frames, width=32, height=32, steps=1)
        seen: list[int] = []

        def decode(latents: Tensor, seen: list[int] = seen) -> Iterator[Tensor]:
            seen.append(latents.shape[2])
            yield torch.zeros(1, 3, frame_length(latents.shape[2]), 32, 32)

        def encode(frames: Tensor) -> Tensor:
            return torch.zeros(1, 16, latent_length(frames.shape[2]), 4, 4)

        film, history = Film(plan), history_of(plan, decode, encode)
        for _ in generate(lambda x, t: x, plan, SeededNoise(0), history, film=film):
            pass
        seams = sum(seen)
        seen.clear()
        list(decode_stretches(film_stretches(plan, film.finished), decode))
        print(f"| {plan.num_windows} | {latent_length(frames)} | {seams} | {sum(seen)} |")


if __name__ == "__main__":
    operations()
    clock()
    decodes()
