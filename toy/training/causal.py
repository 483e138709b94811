"""The block-causal transformer: a low-rank fine-tune of the text-to-video one.

A block of frames sees itself and those before it, as in Self-Forcing. What is learned is a LoRA, so
that its file is small.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skyreels_model.model import SkyReelsModel
from toy.training import noise
from toy.training.latents import CENTRAL, Clips
from toy.training.noise import SIGMA_MAX, Batch
from toy.training.state import Workspace, run_stage
from toy.training.text import Captions
from toy.training.transformer import DFTrainee, Transformer

BLOCK = 3  # latent frames, as published
STEPS, TOKENS = 700, 240
RANK = 32
RATE = 0.5  # of the rates that training from scratch has
LAYERS = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "ffn.0", "ffn.2")
BLOCKS = {3: 0.7, 2: 0.3}  # of a sample
TEXT_ONLY, CONTINUED, AFTER_SINK = range(3)
SHARES = {TEXT_ONLY: 0.5, CONTINUED: 0.3, AFTER_SINK: 0.2}
IN_TURN = 0.7  # of the samples: finished blocks, and others at any levels; the rest are staircases
FAST = ("central", "anywhere")  # clips at 24 frames a second, which is all that T2V models know


class LowRank(nn.Module):
    """A weight and what is learned beside it: up @ down, which begins as 0."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = nn.Parameter(nn.init.orthogonal_(torch.empty(RANK, columns)))
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_low_rank(model: SkyReelsModel) -> None:
    """From now on nothing but a LoRA of the model learns."""
    model.requires_grad_(False)
    for block in model.blocks:
        for name in LAYERS:
            layer = block.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))


def lora_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA in what such a model has learned, by the names that trainers of Wan give it."""
    found = {}
    for name, value in weights.items():
        layer, _, part = name.removeprefix("model.").partition(".parametrizations.weight.0.")
        if part:
            ending = {"down": "lora_A", "up": "lora_B"}[part]
            found[f"diffusion_model.{layer}.{ending}.weight"] = value
    return found


def draw_blocks(clips: Clips, rng: np.random.Generator, tokens: int) -> Batch:
    """Random samples of blocks, about `tokens` latent frames in all.

    Some are films from text alone, some go on from a given block, and in some the first block is
    of an earlier part of the film, as the sink of a sliding one is.
    """
    blocks = int(rng.choice(list(BLOCKS), p=list(BLOCKS.values())))
    frames = blocks * BLOCK
    kinds = np.sort(rng.choice(len(SHARES), size=tokens // frames, p=list(SHARES.values())))
    index = torch.cat(
        [
            clips.pick(rng, CENTRAL[:1] if kind == TEXT_ONLY else FAST, int((kinds == kind).sum()))
            for kind in SHARES
        ]
    )  # (B,)
    video = clips.video[index, :frames].float()  # (B, F, 16, h, w)
    after_sink = np.flatnonzero((kinds == AFTER_SINK) & (blocks > 2))
    for row in after_sink:
        video[row, :BLOCK] = clips.video[_another(clips, rng, int(index[row])), :BLOCK].float()
    given = np.where(kinds == TEXT_ONLY, 0, 1)
    given[after_sink] = 2
    sigma = np.repeat(_levels(rng, given, blocks), BLOCK, axis=1)  # (B, F)
    learned = torch.from_numpy((sigma > 0) & (sigma < SIGMA_MAX - noise.ROUNDING))
    caption = torch.where(
        torch.from_numpy(rng.random(len(kinds)) < 0.1), 0, clips.caption[index] + 1
    )
    rate = torch.full((len(kinds),), 24)
    return Batch(video.transpose(1, 2), torch.from_numpy(sigma).float(), learned, caption, rate)


def _another(clips: Clips, rng: np.random.Generator, index: int) -> int:
    """A clip of the same scene, or the same one where there is no other."""
    alike = (clips.caption == clips.caption[index]) & clips.are(FAST)
    return int(rng.choice(alike.nonzero()[:, 0].numpy()))


def _levels(rng: np.random.Generator, given: np.ndarray, blocks: int) -> np.ndarray:
    """Noise level of each block (B, blocks), 0 for those that are given (B,) or done."""
    count = len(given)
    done = rng.integers(given, blocks)  # (B,)
    u = rng.random((count, blocks))
    u[np.arange(count), done] = (rng.permutation(count) + rng.random(count)) / count
    for row in np.flatnonzero(rng.random(count) > IN_TURN):
        lag, moment = rng.choice([0.1, 0.25, 0.5]), u[row, done[row]]
        place = np.arange(blocks) - done[row]
        u[row] = np.clip(moment + lag * place, 0, 1)
    shift = rng.uniform(2, 8, (count, 1))
    sigma = SIGMA_MAX * shift * u / (1 + (shift - 1) * u)
    return np.where(np.arange(blocks) < done[:, None], 0, sigma)


class CausalTrainee(DFTrainee):
    """A transformer with a LoRA (`add_low_rank`), whose text encoder is not trained."""

    def __init__(self, model: SkyReelsModel, captions: Captions, clips: Clips, tokens: int) -> None:
        both = Transformer(model, captions)
        super().__init__(both, captions, clips, tokens, RATE, False, block=BLOCK)

    def draw(self, rng: np.random.Generator) -> Batch:
        return draw_blocks(self.clips, rng, self.tokens)


def train_lora(
    work: Workspace, model: SkyReelsModel, captions: Captions, clips: Clips, steps: int
) -> dict[str, Tensor]:
    """A LoRA that makes the text-to-video model block-causal: its running mean."""
    add_low_rank(model)
    trainee = CausalTrainee(model, captions, clips, TOKENS)
    run_stage(work, "causal", trainee, steps)
    return lora_of(trainee.average.weights)
