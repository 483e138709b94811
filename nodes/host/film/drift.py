"""Drift of a finished film's LATENT: measured window by window, and taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....skyreels_model.drift.colours import moved, statistics, transport
from ....skyreels_model.drift.meter import Drift, measure
from ....skyreels_model.vae.network import denormalize_latents, normalize_latents
from ..sockets.latent import FILM_KEY, check_latent, film_parts


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
    film = film_parts(latent, samples)
    fixed = None if reference is None else _statistics(check_latent(reference))
    found = [_statistics(samples[:, :, span.start : span.stop]) for span in film.spans]
    wanted = [found[span.reference] if fixed is None else fixed for span in film.spans]
    drifts = [
        measure(span.frame, own, one)
        for span, own, one in zip(film.spans, found, wanted, strict=True)
    ]
    if not strength:
        return latent, drifts
    given = {seam.start: seam.given for seam in film.seams if seam.given is not None}
    parts = []
    for number, span in enumerate(film.spans):
        own = samples[:, :, span.start : span.stop]
        if fixed is not None or span.reference != number:
            how = transport(found[number], wanted[number], strength)
            own = _moved(own, *how)
            if span.start in given:
                given[span.start] = _moved(given[span.start].to(own), *how)
        parts.append(own)
    seams = [replace(seam, given=given.get(seam.start)) for seam in film.seams]
    held = {"samples": torch.cat(parts, dim=2), FILM_KEY: replace(film, seams=seams)}
    return {**latent, **held}, drifts


def film_drift(latent: dict[str, Any]) -> list[Drift]:
    """How far each window's colours are from its sequence's first ones'."""
    return anchor_film(latent, 0.0, None)[1]


def _statistics(samples: Tensor) -> Tensor:
    """Of raw latents, as the model sees them: no channel weighs more than another."""
    return statistics(normalize_latents(samples))


def _moved(samples: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Raw latents, moved as the model sees them."""
    return denormalize_latents(moved(normalize_latents(samples), matrix, shift))
