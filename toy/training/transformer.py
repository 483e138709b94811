"""Training the transformers: diffusion forcing with the text encoder, then the fine-tunes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from toy.training.latents import Clips
from toy.training.noise import SHARES, Batch, draw_batch
from toy.training.optimiser import Average, Optimiser, cosine
from toy.training.text import WIDTH as TEXT_WIDTH
from toy.training.text import Captions

DF = ModelConfig(
    dim=128, ffn_dim=512, num_heads=1, num_layers=4, text_dim=TEXT_WIDTH, fps_embedding=True
)
MUON_LR, ADAM_LR = 0.02, 2e-3
DECAY = 0.9985  # of the running mean


def initialise(model: SkyReelsModel) -> None:
    """As the reference: linear layers by Xavier; the head and the frame rate begin silent."""
    for name, p in model.named_parameters():
        if name.endswith("modulation.weight"):
            nn.init.normal_(p, std=model.config.dim**-0.5)
        elif name.startswith("fps_embedding"):
            nn.init.normal_(p)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
        elif name.startswith(("head.head", "fps_projection.2")):
            nn.init.zeros_(p)
        elif name.startswith(("text_embedding", "time_embedding")):
            nn.init.normal_(p, std=0.02)
        elif p.ndim >= 2:
            nn.init.xavier_uniform_(p.flatten(1))


class Transformer(nn.Module):
    """What is trained together: the transformer and the text encoder."""

    def __init__(self, model: SkyReelsModel, captions: Captions) -> None:
        super().__init__()
        self.model, self.text_encoder = model, captions.encoder


class DFTrainee:
    """The diffusion-forcing transformer, `with_text` together with the text encoder.

    shares: how often each condition of `noise` occurs. block: of how many frames those blocks are
    that see none after them; None: all frames see each other.
    """

    def __init__(
        self,
        transformer: Transformer,
        captions: Captions,
        clips: Clips,
        tokens: int,
        rate: float = 1.0,
        with_text: bool = True,
        shares: Mapping[int, float] = SHARES,
        block: int | None = None,
    ) -> None:
        self.transformer, self.captions, self.clips = transformer, captions, clips
        self.tokens, self.shares, self.block = tokens, shares, block
        transformer.text_encoder.requires_grad_(with_text)
        self.average = Average(transformer, DECAY)
        self.steps = 0
        self.optimiser = new_optimiser(transformer, rate)

    def step(self, rng: np.random.Generator, progress: float) -> float:
        loss = self.loss(self.draw(rng))
        loss.backward()
        nn.utils.clip_grad_norm_(self.transformer.parameters(), 1.0)
        self.optimiser.step(cosine(progress, 0.01, 0.02))
        self.average.update(self.transformer, self.steps)
        self.steps += 1
        return loss.item()

    def draw(self, rng: np.random.Generator) -> Batch:
        """What a step learns from."""
        return draw_batch(self.clips, rng, self.tokens, self.shares)

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the velocity over the frames that are being learned."""
        noise = torch.randn_like(batch.latents)
        sigma = batch.sigma[:, None, :, None, None]  # (B, 1, F, 1, 1)
        x = (1 - sigma) * batch.latents + sigma * noise
        v = self.transformer.model(
            x,
            timesteps(batch.sigma),
            self.captions.rows(batch.caption),
            fps=batch.fps,
            causal_block_size=self.block,
        )
        error = (v - (noise - batch.latents)).square().mean(dim=(1, 3, 4))  # (B, F)
        return (error * batch.learned).sum() / batch.learned.sum()

    def state_dict(self) -> dict[str, Any]:
        return {
            "transformer": self.transformer.state_dict(),
            "average": self.average.weights,
            "optimiser": self.optimiser.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.transformer.load_state_dict(state["transformer"])
        self.average.weights = state["average"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.steps = state["steps"]


def timesteps(sigma: Tensor) -> Tensor:
    """What the network is told: thousandths, truncated, as in sampling."""
    return (sigma * 1000).floor()


def new_optimiser(module: nn.Module, factor: float = 1.0) -> Optimiser:
    """Muon for the square and oblong weights of the blocks, AdamW for all else."""

    def is_matrix(name: str, p: nn.Parameter) -> bool:
        return "blocks." in name and p.ndim == 2 and "pos_embedding" not in name

    parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    return Optimiser(parameters, is_matrix, MUON_LR * factor, ADAM_LR * factor)
