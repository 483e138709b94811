"""Colour drift over the windows of a film: measured, drawn, and held back.

Each window continues the one before, so small shifts of brightness, contrast and hue add up. They
show in the mean and the covariance of the latents' channels, where they can be undone without a way
through pixels, and in those of frames, which tell more of a small figure. What undoes them is the
optimal transport between two Gaussians, the linear Monge-Kantorovich map of colour transfer: Pitie
and Kokaram 2007, "The linear Monge-Kantorovitch linear colour mapping for example-based colour
transfer". Means and deviations of each channel alone (Huang and Belongie 2017, arXiv:1703.06868)
are not enough: hues turn while these stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-12
RIDGE = 0.01  # added to both covariances, of the mean variance
SHIFT_COLOUR, SPREAD_COLOUR, DISTANCE_COLOUR = "#f0b429", "#4aa8ff", "#e5635d"
GRID, GROUND = "#44444c", "#1c1c21"


def statistics(latents: Tensor) -> Tensor:
    """Mean and covariance of the channels, (1, C, F, h, w) -> (1 + C, C) float32 on the CPU."""
    x = latents.float().transpose(0, 1).flatten(1)  # (C, F * h * w)
    mean = x.mean(dim=1)
    centred = x - mean[:, None]
    return torch.cat([mean[None], centred @ centred.T / x.shape[1]]).cpu()


def pool_statistics(parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """The statistics (1 + C, C) of a whole, of those of its parts and how many frames each has."""
    counts = torch.tensor([count for count, _ in parts], dtype=torch.float64)
    each = torch.stack([part for _, part in parts]).double()  # (N, 1 + C, C)
    share = counts / counts.sum()
    mean = share @ each[:, 0]  # (C,)
    off = each[:, 0] - mean
    spread = torch.einsum("n,nij->ij", share, each[:, 1:] + off[:, :, None] * off[:, None, :])
    return torch.cat([mean[None], spread]).float()


def transport(own: Tensor, reference: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """The map x -> matrix @ x + shift that brings statistics (1 + C, C) nearer to a reference's.

    Returns (C, C) and (C,). At strength 0 it changes nothing, at 1 the results are equal; the least
    change that does it. Directions in which there is little contrast are not blown up (`RIDGE`).
    Raises ValueError for statistics that are not finite.
    """
    for name, numbers in (("own", own), ("reference", reference)):
        if not bool(numbers.isfinite().all()):
            raise ValueError(
                f"the {name} colours are infinite or not a number; what made these latents or "
                f"frames failed"
            )
    mean, wanted_mean = own[0].double(), reference[0].double()
    eye = torch.eye(len(mean), dtype=torch.float64)
    ridge = (RIDGE * reference[1:].diagonal().mean() + LEAST_VARIANCE).double() * eye
    source, wanted = own[1:].double() + ridge, reference[1:].double() + ridge
    root, inverse = _power(source, 0.5), _power(source, -0.5)
    matrix = inverse @ _power(root @ wanted @ root, 0.5) @ inverse
    matrix = eye + strength * (matrix - eye)
    mean_then = mean + strength * (wanted_mean - mean)
    return matrix.float(), (mean_then - matrix @ mean).float()


def _power(matrix: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(LEAST_VARIANCE).pow(exponent)) @ vectors.T


def map_colours(latents: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """matrix @ x + shift for each position's channels; latents (1, C, F, h, w), dtype kept."""
    matrix, shift = matrix.to(latents.device), shift.to(latents.device)
    flat = latents.float()[0].flatten(1)  # (C, F * h * w)
    return (matrix @ flat + shift[:, None]).view_as(latents).to(latents.dtype)


def anchor_colours(latents: Tensor, reference: Tensor, strength: float) -> Tensor:
    """Bring the channels' statistics nearer to a reference's (1 + C, C), by `transport`.

    latents (1, C, F, h, w), any dtype, kept. One map for all positions: what moves stays.
    """
    return map_colours(latents, *transport(statistics(latents), reference, strength))
