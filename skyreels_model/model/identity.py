"""What a checkpoint is, in one line. Names decide only where tensors cannot tell."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping

import torch

from ..files.checkpoint import published_name
from ..files.loading import LoadReport, quantization, stored_dtype
from ..files.quantized import Weights
from ..rules import refusal
from .config import ModelConfig

# Width -> what the published models of that width are called.
SIZES = {1536: "1.3B", 5120: "14B"}


CAUSAL = "causal"


def variant(
    config: ModelConfig,
    path: str | pathlib.Path,
    override: str = "auto",
    metadata: Mapping[str, str] | None = None,
) -> str:
    """ "DF", "T2V", "I2V", or "causal": trained for blocks of frames that see none after them.

    DF and T2V files hold the same keys at 14B: there the name tells. Causal ones hold those of
    T2V: there the metadata tell, as ComfyUI reads them, or the published names. Raises ValueError
    for an I2V model that is told to be causal.
    """
    image = config.model_type == "i2v"
    if override == CAUSAL and image:
        raise refusal("variant", CAUSAL, "of a model without image layers", "I2V")
    if override != "auto":
        return override
    if image:
        return "I2V"
    name = published_name(path).upper()
    if _says_causal(metadata or {}) or _is_distillation(name):
        return CAUSAL
    return "T2V" if "T2V" in name and not config.fps_embedding else "DF"


def _is_distillation(name: str) -> bool:
    """Whether a name is one that distillations of Wan 2.1 to blocks of frames are published by."""
    return bool(re.search(r"(SELF|CAUSAL|ROLLING)[-_ ]?FORCING|LONGLIVE", name.upper()))


def _says_causal(metadata: Mapping[str, str]) -> bool:
    """Whether a file's metadata say so: {"config": '{"transformer": {"causal_ar": true}}'}."""
    try:
        told = json.loads(metadata.get("config", "{}"))
        return bool(told["transformer"]["causal_ar"])
    except (ValueError, TypeError, KeyError):
        return False


def profile(path: str | pathlib.Path) -> str:
    """The resolution a model was trained for, which only the name tells: "540P", "720P", …"""
    found = re.search(r"(?<!\d)(480|540|720)_?P", published_name(path).upper())
    return f"{found[1]}P" if found else "resolution not in its name"


def family(path: str | pathlib.Path) -> str:
    """SkyReels-V2, or Wan 2.1 or 2.2 where the name says so: the tensors are the same."""
    name = published_name(path).lower()
    if "skyreels" in name:
        return "SkyReels-V2"
    wan = re.search(r"wan[._-]?2[._]?([12])", name)
    return f"Wan 2.{wan[1]}" if wan else "Wan 2.1" if _is_distillation(name) else "SkyReels-V2"


def parameters(weights: Weights) -> int:
    return sum(weight.shape.numel() for weight in weights.values())


def transformer(
    config: ModelConfig,
    weights: Weights,
    path: str | pathlib.Path,
    found: str,
    used: torch.dtype,
    report: LoadReport,
    note: str = "",
) -> str:
    """One line: type, size, resolution, number formats, quantisation and what matched.

    `weights` are as the file has them; `note` says what of the quantised ones could not be kept.
    """
    size = SIZES.get(config.dim, "another size")
    return (
        f"{family(path)} {found}, {size}, {profile(path)}: {parameters(weights) / 1e9:.2f} B "
        f"parameters ({config.num_layers} blocks of {config.dim}), stored "
        f"{_name(stored_dtype(weights))}, used {_name(used)}, "
        f"quantised {quantization(weights)}{note}, "
        f"fps embedding {'yes' if config.fps_embedding else 'no'}; {report}"
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
