"""Diffusion forcing: which frames of a training sample are given, and how noisy the others are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from toy.training.latents import CENTRAL, SLOW, TURN_SLOT, Clips

SIGMA_MAX = 0.999
ROUNDING = 1e-9
PREFIX_SIGMA = 0.02
STEPS = 20  # of the sampling that staircases imitate
TEXT_ONLY, PREFIX, END, KEY, HEAL, SUFFIX = range(6)
SHARES = {TEXT_ONLY: 0.54, PREFIX: 0.21, END: 0.10, KEY: 0.09, HEAL: 0.03, SUFFIX: 0.03}
CONTINUED = {PREFIX: 1.0}
BOTH = 0.4  # of the pictures on the way come with one at the end, too
UNIFORM, STAIRCASE, INDEPENDENT = range(3)
LEVELS = {UNIFORM: 0.57, STAIRCASE: 0.36, INDEPENDENT: 0.07}
LENGTHS = {9: 0.5, 10: 0.16, 5: 0.16, 6: 0.06, 7: 0.06, 8: 0.06}


@dataclass(frozen=True)
class Batch:
    """Samples of diffusion forcing.

    latents: (B, 16, F, h, w). sigma: (B, F). learned: (B, F) bool, the frames the loss is of.
    caption: (B,) index into the captions with the empty one in front. fps: (B,).
    """

    latents: Tensor
    sigma: Tensor
    learned: Tensor
    caption: Tensor
    fps: Tensor


def draw_batch(
    clips: Clips, rng: np.random.Generator, tokens: int, shares: Mapping[int, float] = SHARES
) -> Batch:
    """Random samples of one length and about `tokens` latent frames in all."""
    frames = int(rng.choice(list(LENGTHS), p=list(LENGTHS.values())))
    count = max(8, tokens // frames)
    conditions = np.sort(rng.choice(list(shares), size=count, p=list(shares.values())))
    index = torch.cat(
        [_pick(clips, rng, c, int((conditions == c).sum()), frames) for c in sorted(shares)]
    )  # (B,)
    video, stills = clips.video[index, :frames].float(), clips.stills[index, :frames].float()
    turned, slow = clips.are(("turned",))[index], clips.are(SLOW)[index]
    given = np.zeros((count, frames), bool)
    still = np.zeros((count, frames), bool)
    for row, condition in enumerate(conditions):
        given[row], still[row] = _given(rng, condition, frames, bool(turned[row]))
    sigma = _levels(rng, given, conditions)
    # Frames of a staircase that wait as pure noise, or are done, teach nothing.
    learned = torch.from_numpy(~given & (sigma > 0) & (sigma < SIGMA_MAX - ROUNDING))
    noised_prefix = (rng.random(count) < 0.5) & np.isin(conditions, (PREFIX, END, KEY))
    sigma[given & ~still & noised_prefix[:, None]] = PREFIX_SIGMA
    latents = torch.where(torch.from_numpy(still)[..., None, None, None], stills, video)
    caption = torch.where(torch.from_numpy(rng.random(count) < 0.1), 0, clips.caption[index] + 1)
    return Batch(
        latents.transpose(1, 2),
        torch.from_numpy(sigma).float(),
        learned,
        caption,
        torch.where(slow, 16, 24),
    )


def _pick(
    clips: Clips, rng: np.random.Generator, condition: int, count: int, frames: int
) -> Tensor:
    """Clips fit for a condition: turned ones only where the turn lies after a given prefix."""
    if condition == TEXT_ONLY:
        return clips.pick(rng, CENTRAL, count)
    turned = ("turned",) if condition == PREFIX and frames > TURN_SLOT else ()
    return clips.pick(rng, ("central", "anywhere", *SLOW, *turned), count)


def _given(
    rng: np.random.Generator, condition: int, frames: int, turned: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which frames are given, and which of those are single pictures, (F,) each."""
    given, still = np.zeros(frames, bool), np.zeros(frames, bool)
    if turned:
        given[:TURN_SLOT] = True
    elif condition == PREFIX:
        given[
            : rng.choice([1, min(5, frames - 1), rng.integers(1, frames)], p=[0.4, 0.35, 0.25])
        ] = True
    elif condition in (END, KEY):
        given[: rng.choice([0, 1, min(5, frames - 2)], p=[0.3, 0.45, 0.25])] = True
        slot = frames - 1 if condition == END else rng.integers(int(given.sum()) + 1, frames)
        given[slot] = still[slot] = True
        if condition == KEY and rng.random() < BOTH:
            given[-1] = still[-1] = True
    elif condition == SUFFIX:
        given[: rng.integers(0, 2)] = True
        given[-rng.integers(1, min(5, frames - 1)) :] = True
    elif condition == HEAL:
        given[:] = True
        given[rng.integers(1, frames, size=rng.integers(1, 3))] = False
    return given, still


def _levels(rng: np.random.Generator, given: np.ndarray, conditions: np.ndarray) -> np.ndarray:
    """Noise level of each frame (B, F), 0 where given.

    u, the way from picture (0) to noise (1), is even over the batch, then shifted as in sampling.
    """
    count, frames = given.shape
    kind = rng.choice(len(LEVELS), size=count, p=list(LEVELS.values()))
    kind[conditions == HEAL] = UNIFORM
    even = (rng.permutation(count) + rng.random(count)) / count  # (B,)
    shift = rng.uniform(np.where(kind == UNIFORM, 2, 1), np.where(kind == UNIFORM, 8, 6))
    u = np.repeat(even[:, None], frames, axis=1)
    u[kind == INDEPENDENT] = rng.random((int((kind == INDEPENDENT).sum()), frames))
    for row in np.flatnonzero(kind == STAIRCASE):
        u[row] = _staircase(rng, even[row], frames, int(given[row].cumprod().sum()))
    sigma = SIGMA_MAX * shift[:, None] * u / (1 + (shift[:, None] - 1) * u)
    return np.where(given, 0, sigma)


def _staircase(rng: np.random.Generator, phase: float, frames: int, prefix: int) -> np.ndarray:
    """u of each frame (F,) at a moment of asynchronous sampling after `prefix` given frames."""
    block = int(rng.integers(1, 6)) if rng.random() < 0.5 else 1
    lag = rng.choice([1, 2, 5, 5, 10, 20]) / STEPS
    place = np.maximum(np.arange(frames) - prefix, 0) // block
    moment = phase * (1 + lag * place[-1])
    return np.clip(1 - (moment - lag * place), 0, 1)
