"""Reader of `tests/golden`: inputs, weights and outputs of the reference implementation."""

import functools
import json
import pathlib

import torch
from safetensors.torch import load_file

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden"
LUT_SIZE = 4093


@functools.cache
def manifest() -> dict:
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def case(name: str) -> dict:
    """The manifest's entry of a case: config, parameters, tolerance, measured."""
    return next(c for c in manifest()["cases"] if c["name"] == name)


def names(kind: str, prefix: str = "") -> list[str]:
    return [
        c["name"] for c in manifest()["cases"] if c["kind"] == kind and c["name"].startswith(prefix)
    ]


def tensors(name: str) -> dict[str, torch.Tensor]:
    return load_file(FOLDER / case(name)["file"])


def from_lut(table: torch.Tensor, shape: list[int]) -> torch.Tensor:
    """Rebuild a tensor: W.reshape(shape[0], -1)[i, j] = table[(131 i + 17 j) mod 4093]."""
    rows = torch.arange(shape[0])[:, None] * 131
    width = 1
    for size in shape[1:]:
        width *= size
    columns = torch.arange(width)[None, :] * 17
    return table[(rows + columns) % LUT_SIZE].reshape(shape)


@functools.cache
@torch.inference_mode(False)  # whoever asks first: what is kept serves all tests
def weights(file: str) -> dict[str, torch.Tensor]:
    """A shared weights file with the original checkpoint key names."""
    shapes = manifest()["weights_files"][file].get("lut_shapes", {})
    state = {}
    for key, value in load_file(FOLDER / file).items():
        kind, name = key.split(".", 1)
        state[name] = value if kind == "weights" else from_lut(value, shapes[name])
    return state


def padded_text(rows: torch.Tensor, length: int = 512) -> torch.Tensor:
    """Zero rows after the text, as the reference feeds its model. (B, n, D) -> (B, length, D)"""
    return torch.nn.functional.pad(rows, (0, 0, 0, length - rows.shape[1]))


def relative_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())
