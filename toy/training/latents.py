"""Clips encoded once: what the transformers are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skyreels_model.vae import VideoVAE, normalize_latents
from toy.training.scenes import Painter, as_named, random_scene
from toy.training.state import Workspace, batches
from toy.world import DIRECTIONS, FPS, SCENES, SIZE, Scene, path

SLOTS = 10  # latent frames of a clip
FRAMES = 4 * (SLOTS - 1) + 1
TURN = 17  # the first frame of a turned clip that goes the new way
TURN_SLOT = 5  # the first latent of it
SLOW_FPS = 16

# Share of each kind of clip. Central ones begin in the middle; films from text alone are learned
# from them: where many places are as likely, a small network begins with two half figures.
KINDS = {"central": 0.30, "anywhere": 0.34, "turned": 0.10, "slow": 0.13, "slow central": 0.13}
CENTRAL, SLOW = ("central", "slow central"), ("slow", "slow central")
MIDDLE = (3 / 8 * SIZE, 5 / 8 * SIZE)  # px


@dataclass(frozen=True)
class Clips:
    """Normalised latents and what they show; float16.

    video: (N, SLOTS, 16, 4, 4). stills: (N, SLOTS, 16, 4, 4): slot k holds the latent of a single
    picture, the first of the frames that latent k of the video stands for. caption: (N,) index into
    `SCENES`. kind: (N,) index into `KINDS`.
    """

    video: Tensor
    stills: Tensor
    caption: Tensor
    kind: Tensor

    def pick(self, rng: np.random.Generator, kinds: tuple[str, ...], count: int) -> Tensor:
        """Indices of random clips of these kinds, (count,)."""
        among = self.are(kinds).nonzero()[:, 0]
        return among[torch.from_numpy(rng.integers(len(among), size=count))]

    def are(self, kinds: tuple[str, ...]) -> Tensor:
        """Which clips are of these kinds, (N,) bool."""
        return torch.isin(self.kind, torch.tensor([list(KINDS).index(name) for name in kinds]))


def picture_frame(slot: int) -> int:
    """The frame that a single picture in a latent slot stands for: the first of the slot's four."""
    return max(4 * slot - 3, 0)


@torch.no_grad()
def encode_clips(
    work: Workspace,
    vae: VideoVAE,
    count: int,
    batch: int = 32,
    painter: Painter = as_named,
) -> Clips:
    """Random clips of the trained scenes, encoded; from the workspace if they are there already."""
    saved = work.load("clips")
    if saved is not None:
        return Clips(**saved)
    parts: dict[str, list[Any]] = {"video": [], "stills": [], "caption": [], "kind": []}
    for index, part in enumerate(batches(count, batch)):
        rng = work.rng("clips", index)
        frames, captions, kinds = [], [], []
        for _ in range(*part.indices(count)):
            kind = int(rng.choice(len(KINDS), p=list(KINDS.values())))
            scene, centres = random_path(rng, list(KINDS)[kind])
            frames.append(painter(rng, scene, centres))
            captions.append(SCENES.index(scene))
            kinds.append(kind)
        x = torch.from_numpy(np.stack(frames)).permute(0, 4, 1, 2, 3) * 2 - 1  # (B, 3, T, H, W)
        parts["video"].append(_latents(vae, x))
        shown = x[:, :, [picture_frame(slot) for slot in range(SLOTS)]]  # (B, 3, SLOTS, H, W)
        pictures = shown.transpose(1, 2).flatten(0, 1)[:, :, None]  # (B * SLOTS, 3, 1, H, W)
        parts["stills"].append(_latents(vae, pictures).view_as(parts["video"][-1]))
        parts["caption"].append(torch.tensor(captions))
        parts["kind"].append(torch.tensor(kinds))
        if index % 32 == 31:
            work.log("clips", done=part.stop, of=count)
    clips = {name: torch.cat(tensors) for name, tensors in parts.items()}
    work.save("clips", clips)
    return Clips(**clips)


def _latents(vae: VideoVAE, x: Tensor) -> Tensor:
    """(B, 3, T, H, W) -> (B, F, 16, h, w)"""
    return normalize_latents(vae.encode(x)).transpose(1, 2).half()


def random_path(rng: np.random.Generator, kind: str) -> tuple[Scene, np.ndarray]:
    """A trained scene, with the last direction, and the centres (FRAMES, 2) of its shape."""
    scene = random_scene(rng)
    directions = [scene.direction] * (FRAMES - 1)
    if kind == "turned":
        before = _other_direction(rng, scene)
        directions[: TURN - 1] = [before] * (TURN - 1)
    start = tuple(rng.uniform(*(MIDDLE if kind in CENTRAL else (0, SIZE)), 2))
    return scene, path(directions, start, SLOW_FPS if kind in SLOW else FPS)


def _other_direction(rng: np.random.Generator, scene: Scene) -> str:
    """Another direction in which this shape was never held out."""
    legal = [
        name
        for name in DIRECTIONS
        if name != scene.direction
        and not Scene(scene.colour, scene.shape, scene.background, name).held_out
    ]
    return str(rng.choice(legal))
