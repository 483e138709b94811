"""Drift of a finished film's LATENT: measured window by window, and taken back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ....skyreels_model.drift.colours import map_colours, statistics, transport
from ....skyreels_model.drift.meter import Drift, measure
from ....skyreels_model.rollout.parts import FilmParts, bind_parts
from ....skyreels_model.vae.network import denormalize_latents, normalize_latents
from ..sockets.latent import FILM_KEY, check_latent, film_parts, make_latent


def anchor_film(
    latent: dict[str, Any], strength: float, reference: dict[str, Any] | None
) -> tuple[dict[str, Any], list[Drift]]:
    """The LATENT with each window held to its sequence's first, or to the reference's colours.

    Also what each window's drift was before. Latents that were given to a window are changed with
    it, so that decoding it goes on as it was made. Raises ValueError for latents that are not one
    video's.
    """
    samples = check_latent(latent)
    if samples.shape[0] != 1:
        raise ValueError(
            f"samples is a batch of {samples.shape[0]}; drift is measured in 1 film: choose it "
            f"with LatentFromBatch"
        )
    fixed = None
    if reference is not None:
        fixed = _statistics(check_latent(reference, "reference"))
    film = film_parts(latent, samples)
    own, wanted = _colours(samples, film, fixed)
    drifts = _measure(film, own, wanted)
    if strength:
        samples, film = _hold(samples, film, own, wanted, strength)
    return {**latent, **make_latent(samples, film)}, drifts


def film_drift(latent: dict[str, Any]) -> list[Drift]:
    """How far each window's colours are from its sequence's first ones', of a film just made."""
    samples, film = latent["samples"], latent[FILM_KEY]
    return _measure(film, *_colours(samples, film, None))


def _colours(
    samples: Tensor, film: FilmParts, fixed: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The statistics of each span, and those that it is held to."""
    own = [_statistics(samples[:, :, span.start : span.stop]) for span in film.spans]
    return own, [own[span.reference] if fixed is None else fixed for span in film.spans]


def _measure(film: FilmParts, own: list[Tensor], wanted: list[Tensor]) -> list[Drift]:
    each = zip(film.spans, own, wanted, strict=True)
    return [measure(span.frame, found, reference) for span, found, reference in each]


def _hold(
    samples: Tensor, film: FilmParts, own: list[Tensor], wanted: list[Tensor], strength: float
) -> tuple[Tensor, FilmParts]:
    given = {seam.start: seam.given for seam in film.seams if seam.given is not None}
    parts = []
    for span, found, reference in zip(film.spans, own, wanted, strict=True):
        part = samples[:, :, span.start : span.stop]
        if found is not reference:
            how = transport(found, reference, strength)
            part = _map_raw(part, *how)
            if span.start in given:
                given[span.start] = _map_raw(given[span.start].to(part), *how)
        parts.append(part)
    samples = torch.cat(parts, dim=2)
    seams = [replace(seam, given=given.get(seam.start)) for seam in film.seams]
    return samples, bind_parts(samples, seams, film.spans, film.before, film.after, film.fps)


def _statistics(samples: Tensor) -> Tensor:
    """Of raw latents, as the model sees them: no channel weighs more than another."""
    return statistics(normalize_latents(samples))


def _map_raw(samples: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Raw latents, changed as the model sees them."""
    return denormalize_latents(map_colours(normalize_latents(samples), matrix, shift))
