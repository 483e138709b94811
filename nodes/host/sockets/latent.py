"""What rides with a film's LATENT: where its windows begin, and what was given to them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ....skyreels_model.framing import FramedFilm
from ....skyreels_model.grid import CHANNELS, TEMPORAL_STRIDE, frame_length
from ....skyreels_model.plan.windows import Window
from ....skyreels_model.rollout.film import Film

FILM_KEY = "skyreels_v2_film"
LOG = logging.getLogger("skyreels_v2")


@dataclass(frozen=True)
class Seam:
    """Where latents begin that are decoded by themselves, the latents given to them, their frames.

    frames: how many of its own frames belong to the film, from frame `skip` of them on.
    """

    start: int
    given: Tensor | None
    frames: int
    skip: int = 0


@dataclass(frozen=True)
class Span:
    """Latents [start, stop) that were made together, and their first frame.

    reference: the number of the span whose colours they were to keep, its own where it began anew.
    """

    start: int
    stop: int
    frame: int
    reference: int


@dataclass(frozen=True)
class FilmParts:
    """How latents of a shape were made and are to be decoded.

    before, behind: films (T, H, W, 3) that they extend and lead into.
    """

    shape: tuple[int, ...]
    seams: list[Seam]
    spans: list[Span]
    before: FramedFilm | Tensor | None = None
    behind: FramedFilm | Tensor | None = None


def spans_of_window(
    film: Film, window: Window, start: int, count: int, frame: int, before: list[Span]
) -> list[Span]:
    """A window's own latents; of one sequence as many at a time as a view shows."""
    plan, number = film.plan, len(before)
    if plan.sliding:
        view = plan.shown_latents(window)
        # Behind given latents that are left out every one has four frames.
        whole = count < window.length
        return [
            Span(
                i,
                min(i + view, start + count),
                frame + ((i - start) * TEMPORAL_STRIDE if whole else frame_length(i - start)),
                number,
            )
            for i in range(start, start + count, view)
        ]
    reference = number
    if plan.backwards:
        reference = plan.num_windows - 1
    elif window.repeated:
        reference = before[-1].reference
    return [Span(start, start + count, frame, reference)]


def check_latent(latent: dict[str, Any]) -> Tensor:
    """The samples of a video LATENT, or a ValueError that says what was given instead."""
    samples = latent["samples"]
    if samples.ndim != 5 or samples.shape[1] != CHANNELS:
        kind = "an image" if samples.ndim == 4 else "another video"
        raise ValueError(
            f"samples has shape {tuple(samples.shape)}, the latents of {kind} model; needed is "
            f"(batch, {CHANNELS}, frames, height / 8, width / 8) of a SkyReels-V2 or Wan 2.1 model"
        )
    return samples


def film_parts(latent: dict[str, Any], samples: Tensor) -> FilmParts:
    """How these samples were made: in one window where a node has changed their shape since."""
    film: FilmParts | None = latent.get(FILM_KEY)
    if film is not None:
        if tuple(samples.shape) == film.shape:
            return film
        LOG.warning("The latents were resized or cut after sampling; decoding them as one window.")
    count = samples.shape[2]
    seam, span = Seam(0, None, frame_length(count)), Span(0, count, 0, 0)
    return FilmParts(tuple(samples.shape), [seam], [span])
