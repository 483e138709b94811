"""What a VAE's checkpoint is: read from its tensors, never from its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..files.keys import WAN22_VAE_MARK, looks_like

EXPECTED = "the file must be a Wan 2.1 VAE (Wan2.1_VAE.pth or wan_2.1_vae.safetensors)"
REQUIRED = (
    "encoder.conv1.weight",
    "encoder.downsamples.0.residual.2.weight",
    "encoder.head.2.weight",
    "conv1.weight",
    "conv2.weight",
    "decoder.conv1.weight",
    "decoder.head.0.gamma",
    "decoder.head.2.weight",
)


def vae_config_from_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `VideoVAE` for these tensors: dim, z_dim, dim_mult, num_res_blocks, ....

    Keys are the original names without a prefix. Raises ValueError, saying what was found, where
    the tensors are not those of a Wan 2.1 VAE or contradict each other.
    """
    _require_wan21(state_dict)
    shapes = {key: tuple(state_dict[key].shape) for key in REQUIRED}
    dim, channels = shapes["encoder.conv1.weight"][:2]
    z_dim = shapes["conv2.weight"][0]
    _require("encoder.conv1.weight", "input channels", channels, 3)
    _require("decoder.head.2.weight", "output channels", shapes["decoder.head.2.weight"][0], 3)
    _require("decoder.conv1.weight", "latent channels", shapes["decoder.conv1.weight"][1], z_dim)
    for key in ("encoder.head.2.weight", "conv1.weight"):
        _require(key, "moments (mean and variance)", shapes[key][0], 2 * z_dim)
    widths, blocks, temporal = _encoder_levels(state_dict)
    _require("decoder.head.0.gamma", "channels", shapes["decoder.head.0.gamma"][0], widths[0])
    uneven = [width for width in widths if width % dim]
    if uneven:
        raise ValueError(f"a level is {uneven[0]} wide; it must be a multiple of dim {dim}")
    return {
        "dim": dim,
        "z_dim": z_dim,
        "dim_mult": tuple(width // dim for width in widths),
        "num_res_blocks": blocks,
        "temporal_downsample": temporal,
    }


def _require_wan21(state_dict: Mapping[str, Tensor]) -> None:
    if WAN22_VAE_MARK in state_dict:
        raise ValueError(f"this is a Wan 2.2 VAE (it has {WAN22_VAE_MARK!r}); {EXPECTED}")
    absent = [key for key in REQUIRED if key not in state_dict]
    if absent:
        raise ValueError(
            f"this looks like {looks_like(state_dict)} ({len(state_dict)} tensors, no "
            f"{absent[0]!r}); {EXPECTED}"
        )
    shape = tuple(state_dict["encoder.conv1.weight"].shape)
    if len(shape) != 5:
        raise ValueError(
            f"encoder.conv1.weight has shape {shape}, which is no 3-D convolution; {EXPECTED}"
        )


def _require(key: str, what: str, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{key} has {found} {what}, which must be {expected}; {EXPECTED}")


def _encoder_levels(
    state_dict: Mapping[str, Tensor],
) -> tuple[tuple[int, ...], int, tuple[bool, ...]]:
    """Width of each level, residual blocks per level, and which resampling halves time."""
    widths: list[int] = []
    counts = [0]
    temporal: list[bool] = []
    for index in range(_count_downsamples(state_dict)):
        block = f"encoder.downsamples.{index}"
        residual = state_dict.get(f"{block}.residual.2.weight")
        if residual is None:
            temporal.append(f"{block}.time_conv.weight" in state_dict)
            counts.append(0)
            continue
        if not counts[-1]:
            widths.append(residual.shape[0])
        counts[-1] += 1
    if len(widths) != len(counts) or len(set(counts)) > 1:
        raise ValueError(
            f"the encoder's levels have {counts} residual blocks; every level "
            f"has the same number; {EXPECTED}"
        )
    return tuple(widths), counts[0], tuple(temporal)


def _count_downsamples(state_dict: Mapping[str, Tensor]) -> int:
    pattern = re.compile(r"encoder\.downsamples\.(\d+)\.")
    return 1 + max(int(found[1]) for key in state_dict if (found := pattern.match(key)))
