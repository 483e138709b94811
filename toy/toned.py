"""Train a copy of the toy set whose films can drift, for `benchmarks/drift.py`.

    python toy/toned.py FOLDER [--state FOLDER]

The toy world has few colours: what goes a little wrong in one window is pulled back to them in the
next. Real films have no such rest. Here clips are of any brightness and contrast, which no caption
tells: a window has nothing to go by but the frames it continues. The shipped VAE and DF transformer
are trained on with such clips, half an hour on one CPU core; interrupted, it goes on.
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
from skyreels_model.vae import VideoVAE  # noqa: E402
from toy import toyset  # noqa: E402
from toy.training import pack, text, transformer, vae  # noqa: E402
from toy.training.latents import encode_clips  # noqa: E402
from toy.training.state import Workspace, run_stage  # noqa: E402

VAE_STEPS, VAE_RATE, LENGTHS, FRAMES = 600, 0.005, (5, 9, 17), 48
MEASURED_CLIPS = 256
CLIPS, DF_STEPS, DF_TOKENS = 1536, 1000, 420


def train_vae(work: Workspace, network: VideoVAE) -> None:
    """The VAE learns every brightness; its latents get the published statistics again."""
    done = work.load("toned-vae-done")
    if done is None:
        vae.unfold_statistics(network)
        trainee = vae.VAETrainee(network, LENGTHS, FRAMES, VAE_RATE, toned=True)
        run_stage(work, "toned-vae", trainee, VAE_STEPS)
        network.load_state_dict(trainee.average.weights)
        vae.fold_statistics(network, work.rng("toned-statistics", 0), MEASURED_CLIPS, toned=True)
        done = network.half().float().state_dict()
        work.save("toned-vae-done", done)
    network.load_state_dict(done)


def train_df(work: Workspace, toy: toyset.ToySet) -> None:
    clips = encode_clips(work, toy.vae, CLIPS, toned=True)
    spiece = (toyset.TOKENIZER / "spiece.model").read_bytes()
    captions = text.Captions(spiece, toy.text_encoder)
    both = transformer.Transformer(toy.transformer, captions)
    trainee = transformer.DFTrainee(both, captions, clips, DF_TOKENS, polishing=True)
    run_stage(work, "toned-df", trainee, DF_STEPS)
    both.load_state_dict(trainee.average.weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="where the two networks are written")
    parser.add_argument("--state", type=pathlib.Path, default=cache.root() / "toy-toned")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # more threads cost time at this size
    work, toy = Workspace(options.state, options.seed), toyset.ToySet.load()
    for network in (toy.vae, toy.transformer):
        network.requires_grad_(True)
    train_vae(work, toy.vae)
    train_df(work, toy)
    pack.write_pth(options.folder / toyset.VAE.name, pack.half(toy.vae.state_dict()))
    pack.pack_transformer(toy.transformer.state_dict(), options.folder)


if __name__ == "__main__":
    main()
