"""Drift of a finished film's LATENT: measured window by window, and taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...skyreels_model.drift import Drift, anchored, measure, statistics
from .decoding import SEAMS_KEY, check_latent, fitting_seams


def anchor_film(
    latent: dict[str, Any], strength: float, reference: dict[str, Any] | None
) -> tuple[dict[str, Any], list[Drift]]:
    """The LATENT with each window held to its sequence's first, or to the reference's colours.

    Also what each window's drift was before. Latents that were given to a window are moved with
    it, so that decoding it goes on as it was made.
    """
    samples = check_latent(latent)
    if samples.shape[0] != 1:
        raise ValueError(
            f"samples is a batch of {samples.shape[0]}; drift is measured in 1 film: choose it "
            f"with LatentFromBatch"
        )
    seams, _ = fitting_seams(latent, samples)
    fixed = None if reference is None else statistics(check_latent(reference))
    first, parts, held, drifts, frame = fixed, [], [], [], 0
    ends = [seam.start for seam in seams[1:]] + [samples.shape[2]]
    for seam, end in zip(seams, ends, strict=True):
        own = samples[:, :, seam.start : end]
        if fixed is None and (first is None or seam.given is None):
            first = statistics(own)
        assert first is not None
        drifts.append(measure(frame, own, first))
        frame += seam.frames
        given = seam.given
        if strength and (fixed is not None or seam.given is not None):
            whole = own if given is None else torch.cat([given.to(own), own], dim=2)
            moved = _moved_like(own, first, strength, whole)
            count = 0 if given is None else given.shape[2]
            given = moved[:, :, :count] if count else None
            own = moved[:, :, count:]
        parts.append(own)
        held.append(replace(seam, given=given))
    return {**latent, "samples": torch.cat(parts, dim=2), SEAMS_KEY: held}, drifts


def _moved_like(own: Tensor, reference: Tensor, strength: float, whole: Tensor) -> Tensor:
    """`whole` moved by what holds `own` to the reference."""
    before, after = statistics(own), statistics(anchored(own, reference, strength))
    scale = after[1] / before[1].clamp_min(1e-6)
    shape = (1, -1, 1, 1, 1)
    centred = (whole.float() - before[0].view(shape)) * scale.view(shape)
    return (centred + after[0].view(shape)).to(whole.dtype)
