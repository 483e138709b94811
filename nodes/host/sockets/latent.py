"""A film's LATENT: its latents for every node, and beside them what our nodes know of them.

What rides along is bound to the latents' content (`rollout.parts.bind_parts`): ComfyUI's nodes copy
it to whatever they make of a LATENT, so that a second pass would be decoded with the first's seams.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ....skyreels_model.files.mapped import read_through
from ....skyreels_model.grid import CHANNELS
from ....skyreels_model.rollout.parts import FilmParts, fingerprint, one_window
from ..notice import warn
from ..tensors import lacks_numbers

FILM_KEY = "skyreels_v2_film"
# Raw latents of any picture stay below 10; of what is far beyond, a VAE makes noise or NaN.
LARGEST = 1e4
NEEDED = "needed are the latents of a SkyReels-V2 or Wan 2.1 model"


def make_latent(samples: Tensor, parts: FilmParts) -> dict[str, Any]:
    """A LATENT of raw latents (1, C, F, h, w), with how they were made."""
    return {"samples": samples, FILM_KEY: parts}


def check_latent(latent: dict[str, Any], name: str = "samples") -> Tensor:
    """The samples of a video LATENT (B, 16, F, h, w), all finite.

    Raises ValueError that names the input and says what was given instead.
    """
    samples = latent.get("samples")
    if not isinstance(samples, Tensor):
        found = "nothing" if samples is None else f"a {type(samples).__name__}"
        raise ValueError(f"{name} is a LATENT with {found} for samples; {NEEDED}")
    if samples.ndim != 5 or samples.shape[1] != CHANNELS:
        kind = "an image" if samples.ndim == 4 else "another video"
        raise ValueError(
            f"{name} has shape {tuple(samples.shape)}, the latents of {kind} model; needed is "
            f"(batch, {CHANNELS}, frames, height / 8, width / 8) of a SkyReels-V2 or Wan 2.1 model"
        )
    if not samples.numel():
        raise ValueError(f"{name} has shape {tuple(samples.shape)}, which is empty; {NEEDED}")
    flaw = lacks_numbers(samples)
    if flaw:
        raise ValueError(f"{name} has {flaw}; {NEEDED}")
    record = latent.get(FILM_KEY)
    on_disk = isinstance(record, FilmParts) and record.on_disk
    for number, part in enumerate(read_through(samples, on_disk)):
        least, most = map(float, torch.aminmax(part))
        if not math.isfinite(least + most):
            raise ValueError(
                f"{name} has numbers in latent frame {number} that are infinite or not a number; "
                f"the node that made it failed"
            )
        if max(-least, most) > LARGEST:
            raise ValueError(
                f"{name} has numbers up to {max(-least, most):.3g} in latent frame {number}; a "
                f"film's stay below {LARGEST:g}: the node that made it failed"
            )
    return samples


def film_parts(latent: dict[str, Any], samples: Tensor) -> FilmParts:
    """How these samples were made; as one window where that is not known or no longer true."""
    parts = latent.get(FILM_KEY)
    if not isinstance(parts, FilmParts):
        if samples.shape[2] > 1:
            warn(
                "samples brings no record of its windows, so it is decoded as one. That is right "
                "for latents made in one window. A longer film that went through Save Latent and "
                "Load Latent has lost its record there: it may jump at every seam. Decode it "
                "before it is saved."
            )
        return one_window(samples)
    if parts.simple and parts.shape[2] == samples.shape[2]:
        return parts
    if parts.shape == tuple(samples.shape) and parts.digest == fingerprint(samples, parts.on_disk):
        return parts
    clips = parts.before is not None or parts.after is not None
    lost = "the seams and the clips before and after" if clips else "the seams"
    warn(
        f"samples was changed by another node since it was sampled (a second sampler, resized, "
        f"cut), so it is decoded as one window, without {lost} of the film that it was."
    )
    return one_window(samples)
