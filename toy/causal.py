"""Train the toy set's block-causal variant alone: a LoRA for the shipped text-to-video transformer.

    python toy/causal.py [--state FOLDER] [--out FILE] [--seed 0] [--effort 1.0]

Blocks of three latents see themselves and those before them, as in Self-Forcing. About a quarter of
an hour on one CPU core; interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from devtools import cache  # noqa: E402
from toy import toyset  # noqa: E402
from toy.train import scaled  # noqa: E402
from toy.training import causal, pack, text  # noqa: E402
from toy.training.latents import encode_clips  # noqa: E402
from toy.training.state import Workspace  # noqa: E402

CLIPS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=pathlib.Path, default=cache.root() / "toy-causal")
    parser.add_argument("--out", type=pathlib.Path, default=toyset.CAUSAL_LORA)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", type=float, default=1.0, help="factor of all numbers of steps")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # more threads cost time at this size
    work, toy = Workspace(options.state, options.seed), toyset.ToySet.load("T2V")
    clips = encode_clips(work, toy.vae, scaled(CLIPS, min(options.effort, 1), 28))
    spiece = (toyset.TOKENIZER / "spiece.model").read_bytes()
    captions = text.Captions(spiece, toy.text_encoder)
    steps = scaled(causal.STEPS, options.effort)
    lora = causal.train_lora(work, toy.transformer, captions, clips, steps)
    pack.pack_lora(lora, options.out)


if __name__ == "__main__":
    main()
