"""Train a copy of the toy set whose films can drift, for `benchmarks/drift.py`.

    python toy/recolour.py FOLDER [--state FOLDER]

The toy world names few colours: what goes a little wrong in one window is pulled back to them in
the next. Real films have no such rest. Here figures and backgrounds are of any colours, which no
caption tells: a window has nothing to go by but the frames that it continues. A VAE is trained from
scratch and the shipped DF transformer trained on with such clips, in about two hours on one CPU
core; interrupted, it goes on.
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
from toy import toyset, train  # noqa: E402
from toy.training import pack, text, transformer, vae  # noqa: E402
from toy.training.latents import encode_clips  # noqa: E402
from toy.training.noise import CONTINUED, SHARES  # noqa: E402
from toy.training.scenes import any_colours  # noqa: E402
from toy.training.state import Workspace, run_stage  # noqa: E402

IMAGE_STEPS, CLIP_STEPS, MEASURED_CLIPS = 1000, 1200, 256
CLIPS, DF_STEPS, POLISHING_STEPS = 4096, 6000, 4000
MORE_CLIPS, CONTINUING_STEPS, CONTINUING_RATE = 10240, 11000, 0.7


def train_vae(work: Workspace) -> VideoVAE:
    """From scratch: the shipped one has no room for all colours."""
    network = vae.new_vae()
    done = work.load("vae")
    if done is None:
        train.learn_clips(
            work, network, IMAGE_STEPS, CLIP_STEPS, MEASURED_CLIPS, painter=any_colours
        )
        done = network.half().float().state_dict()
        work.save("vae", done)
    network.load_state_dict(done)
    return network.eval()


def train_df(work: Workspace, toy: toyset.ToySet, network: VideoVAE) -> None:
    """The shipped transformer, which knows how things move, after the shipped text encoder."""
    clips = encode_clips(work, network, CLIPS, painter=any_colours)
    # To go on from given frames is all that these films are measured at, in colours never seen.
    more = Workspace(work.folder / "more", work.seed + 1)
    many = encode_clips(more, network, MORE_CLIPS, painter=any_colours)
    spiece = (toyset.TOKENIZER / "spiece.model").read_bytes()
    captions = text.Captions(spiece, toy.text_encoder, lambda scene: scene.colourless)
    both = transformer.Transformer(toy.transformer.requires_grad_(True), captions)
    for stage, steps, rate, seen, shares in (
        ("df", DF_STEPS, 1.0, clips, SHARES),
        ("df-polish", POLISHING_STEPS, train.POLISHING_RATE, clips, SHARES),
        ("df-continued", CONTINUING_STEPS, CONTINUING_RATE, many, CONTINUED),
    ):
        tokens = train.DF_TOKENS
        trainee = transformer.DFTrainee(both, captions, seen, tokens, rate, False, shares)
        run_stage(work, stage, trainee, steps)
        both.load_state_dict(trainee.average.weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="where the two networks are written")
    parser.add_argument("--state", type=pathlib.Path, default=cache.root() / "toy-recoloured")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)  # more threads cost time at this size
    work, toy = Workspace(options.state, options.seed), toyset.ToySet.load()
    network = train_vae(work)
    train_df(work, toy, network)
    pack.write_pth(options.folder / toyset.VAE.name, pack.half(network.state_dict()))
    pack.pack_transformer(toy.transformer.state_dict(), options.folder)


if __name__ == "__main__":
    main()
