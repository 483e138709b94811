"""Train the toy set from scratch, with one command; an interrupted run goes on where it stopped.

    python toy/train.py [--state FOLDER] [--weights FOLDER] [--seed 0] [--effort 1.0]

Stages: the VAE on pictures, then on clips, then its decoder alone; clips encoded once; the
diffusion-forcing transformer together with the text encoder, then after it; the text-to-video
transformer, which is the former at 24 frames per second, and the image-to-video one as a short
fine-tune of it; a LoRA that makes it block-causal (`toy/causal.py` alone, from the shipped set);
files in the published layouts. About three hours on one CPU core.
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
from skyreels_model.model import SkyReelsModel  # noqa: E402
from skyreels_model.text_encoder.tokenizer import Tokenizer  # noqa: E402
from skyreels_model.vae import VideoVAE  # noqa: E402
from toy.training import causal, finetunes, pack, text, transformer, vae  # noqa: E402
from toy.training.image_tower import Features, new_tower  # noqa: E402
from toy.training.latents import Clips, encode_clips  # noqa: E402
from toy.training.scenes import Painter, as_named  # noqa: E402
from toy.training.state import Workspace, run_stage  # noqa: E402

WEIGHTS = ROOT / "toy" / "weights"
IMAGE_STEPS, IMAGE_RATE, IMAGES = 1000, 0.025, 16
CLIP_STEPS, CLIP_RATE, CLIP_LENGTHS, CLIP_FRAMES = 1200, 0.01, (5, 9, 17), 48
DECODER_STEPS, DECODER_RATE = 1100, 0.005
CLIPS, MEASURED_CLIPS = 14336, 512
DF_STEPS, DF_TOKENS = 11000, 420
POLISHING_STEPS, POLISHING_RATE = 12000, 0.35
I2V_STEPS, IMAGE_CLIPS = 1400, 1536


def scaled(count: int, effort: float, least: int = 1) -> int:
    """`count` times `effort`, at least `least`: every stage of a trial run takes a step."""
    return max(least, round(count * effort))


def train_vae(work: Workspace, effort: float) -> VideoVAE:
    """Pictures, clips, published latent statistics, the decoder alone: all else builds on it."""
    done = work.load("vae")
    network = vae.new_vae()
    if done is None:
        images, clips = scaled(IMAGE_STEPS, effort), scaled(CLIP_STEPS, effort)
        learn_clips(work, network, images, clips, scaled(MEASURED_CLIPS, min(effort, 1), 16))
        decoder = vae.VAETrainee(network, CLIP_LENGTHS, CLIP_FRAMES, DECODER_RATE, True)
        run_stage(work, "vae-decoder", decoder, scaled(DECODER_STEPS, effort))
        network.load_state_dict(decoder.average.weights)
        done = network.half().float().state_dict()
        work.save("vae", done)
    network.load_state_dict(done)
    return network.eval()


def learn_clips(
    work: Workspace,
    network: VideoVAE,
    image_steps: int,
    clip_steps: int,
    measured: int,
    painter: Painter = as_named,
) -> None:
    """A new VAE learns pictures, then clips; `measured` of them give it published statistics."""
    pictures = vae.VAETrainee(network, (1,), IMAGES, IMAGE_RATE, painter=painter)
    run_stage(work, "vae-images", pictures, image_steps)
    network.load_state_dict(pictures.average.weights)
    vae.inflate(network)
    clips = vae.VAETrainee(network, CLIP_LENGTHS, CLIP_FRAMES, CLIP_RATE, painter=painter)
    run_stage(work, "vae-clips", clips, clip_steps)
    network.load_state_dict(clips.average.weights)
    vae.fold_statistics(network, work.rng("vae-statistics", 0), measured, painter)


def train_df(work: Workspace, clips: Clips, effort: float) -> tuple[bytes, dict, text.Captions]:
    """The tokenizer, the DF transformer's averaged weights, and the captions with theirs."""
    spiece = text.train_tokenizer()
    vocabulary = Tokenizer(spiece).vocab_size
    captions = text.Captions(spiece, text.new_encoder(vocabulary + vocabulary % 2))
    model = SkyReelsModel(transformer.DF)
    transformer.initialise(model)
    both = transformer.Transformer(model, captions)
    trainee = transformer.DFTrainee(both, captions, clips, DF_TOKENS)
    run_stage(work, "df", trainee, scaled(DF_STEPS, effort))
    both.load_state_dict(trainee.average.weights)
    polish = transformer.DFTrainee(both, captions, clips, DF_TOKENS, POLISHING_RATE, False)
    run_stage(work, "df-polish", polish, scaled(POLISHING_STEPS, effort))
    both.load_state_dict(polish.average.weights)
    return spiece, _part(polish.average.weights, "model."), captions


def _part(weights: dict, prefix: str) -> dict:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def train_finetunes(
    work: Workspace,
    network: VideoVAE,
    df: dict,
    captions: text.Captions,
    effort: float,
) -> tuple[dict, dict, dict]:
    """The weights of the T2V and the I2V transformer, and the image encoder's."""
    t2v = finetunes.t2v_from_df(df)
    tower = new_tower(work.seed)
    features = Features(tower)
    images = finetunes.encode_image_clips(
        work, network, features, scaled(IMAGE_CLIPS, min(effort, 1), 3)
    )
    draw = finetunes.image_samples(images, features, DF_TOKENS)
    i2v = finetunes.FineTune(finetunes.i2v_from_t2v(t2v), captions, draw)
    run_stage(work, "i2v", i2v, scaled(I2V_STEPS, effort))
    return t2v, i2v.average.weights, tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--state", type=pathlib.Path, default=cache.root() / "toy-training")
    parser.add_argument("--weights", type=pathlib.Path, default=WEIGHTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--effort", type=float, default=1.0, help="factor of all numbers of steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    work = Workspace(options.state, options.seed)
    network = train_vae(work, options.effort)
    pack.write_pth(
        options.weights / "vae" / "toy" / "Wan2.1_VAE.pth", pack.half(network.state_dict())
    )
    clips = encode_clips(work, network, scaled(CLIPS, min(options.effort, 1), 28))
    spiece, df, captions = train_df(work, clips, options.effort)
    models = options.weights / "diffusion_models" / "toy"
    pack.pack_transformer(df, models / "SkyReels-V2-DF-Toy-32P")
    pack.pack_text_encoder(
        captions.encoder.state_dict(), spiece, options.weights / "text_encoders" / "toy"
    )
    t2v, i2v, tower = train_finetunes(work, network, df, captions, options.effort)
    pack.pack_transformer(t2v, models / "SkyReels-V2-T2V-Toy-32P")
    pack.pack_transformer(i2v, models / "SkyReels-V2-I2V-Toy-32P")
    pack.write_pth(options.weights / "clip_vision" / "toy" / pack.IMAGE_ENCODER, tower)
    model = SkyReelsModel(finetunes.T2V)
    model.load_state_dict(t2v)
    steps = scaled(causal.STEPS, options.effort)
    lora = causal.train_lora(work, model, captions, clips, steps)
    pack.pack_lora(lora, options.weights / "loras" / "toy" / pack.CAUSAL_LORA)


if __name__ == "__main__":
    main()
