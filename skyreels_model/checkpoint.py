"""Files to tensors, tensors to modules. Files are untrusted: nothing in them is ever executed."""

from __future__ import annotations

import pathlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
MARKER = "model_type."
SHARD = re.compile(r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})\.safetensors$")
SAFETENSORS = (".safetensors", ".sft")
PICKLED = (".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file or of a set of shards, by name, with the file's own metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


@dataclass(frozen=True)
class LoadReport:
    """What happened to the keys of a checkpoint; missing ones are an error, never a report."""

    matched: int
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.matched} tensors matched, 0 missing, {len(self.unexpected)} unexpected"
        if self.unexpected:
            text += f" ({', '.join(self.unexpected[:3])}{', …' if self.unexpected[3:] else ''})"
        return text


def read(path: str | pathlib.Path) -> Checkpoint:
    """Read a checkpoint: one file, or, given one shard of a set, all of the set.

    Safetensors are memory-mapped. `.pth` and kin are read without executing anything in them.
    Raises ValueError, naming the file, when it is truncated, incomplete or of another kind;
    FileNotFoundError when there is none.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if path.suffix in SAFETENSORS:
        return _read_shards(shard_files(path))
    if path.suffix in PICKLED:
        return Checkpoint(_read_pickled(path), {})
    raise ValueError(
        f"{path.name}: files of type {path.suffix!r} cannot be read; legal are "
        f"{', '.join(SAFETENSORS + PICKLED)}"
    )


def shard_files(path: pathlib.Path) -> list[pathlib.Path]:
    """All files of the set that `path` belongs to; ValueError if one of them is missing."""
    match = SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    files = [
        path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.safetensors")
        for i in range(1, count + 1)
    ]
    absent = [f.name for f in files if not f.is_file()]
    if absent:
        raise ValueError(
            f"{path.name} is one of {count} shards, of which {len(absent)} are missing beside it: "
            f"{', '.join(absent[:3])}{', …' if absent[3:] else ''}"
        )
    return files


def _read_shards(files: list[pathlib.Path]) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        part, part_metadata = _read_safetensors(file)
        twice = tensors.keys() & part.keys()
        if twice:
            raise ValueError(f"{file.name}: {min(twice)!r} is in another shard, too")
        tensors.update(part)
        metadata.update(part_metadata)
    return Checkpoint(tensors, metadata)


def _read_safetensors(file: pathlib.Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            names = opened.keys()
            return {name: opened.get_tensor(name) for name in names}, opened.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{file.name} ({file.stat().st_size} bytes) is not a whole safetensors file: {error}. "
            f"It is likely truncated or still being downloaded; fetch it again"
        ) from error


def _read_pickled(file: pathlib.Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file.name} holds more than tensors (it would run code when loaded) and is refused; "
            f"get the safetensors version of it"
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(
            f"{file.name} ({file.stat().st_size} bytes) is not a whole PyTorch file: {error}"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(f"{file.name} is not a file of named tensors")
    return dict(loaded)


def transformer_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A diffusion model's tensors under their original names: prefixes and markers removed.

    Raises ValueError for scaled or quantised fp8 files, whose scales would be lost here.
    """
    prefix = next((p for p in PREFIXES if f"{p}patch_embedding.weight" in tensors), "")
    own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    own = {k: v for k, v in own.items() if not k.startswith(MARKER)}
    scaled = [
        k for k in own if k.endswith(("scale_weight", "weight_scale", "scaled_fp8", "comfy_quant"))
    ]
    if scaled:
        raise ValueError(
            f"this is a scaled fp8 file ({scaled[0]!r}), which this loader cannot read yet; use "
            f"ComfyUI's own 'Load Diffusion Model' for it, or an fp16, bf16, fp32 or plain fp8 file"
        )
    return own


def published_name(path: str | pathlib.Path) -> str:
    """The part of a path that tells the variant: the file's own name and its folder's."""
    path = pathlib.Path(path)
    return f"{path.parent.name}/{path.name}"


def load_weights(
    module: nn.Module, tensors: Mapping[str, Tensor], layout: nn.Module | None = None
) -> LoadReport:
    """Put a checkpoint's tensors in a module built on the meta device, without a second copy.

    A tensor is converted only where the module asks for another dtype. `layout` is a twin of the
    module with plain PyTorch layers, needed where a host's layers have no weights before they are
    loaded. Raises ValueError, before anything is put in place, if a weight is missing or of
    another shape.
    """
    wanted = (layout or module).state_dict()
    named = {_module_name(key, wanted): value for key, value in tensors.items()}
    missing = [key for key in wanted if key not in named]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} weights are missing, the first is {missing[0]!r} "
            f"(is a shard missing, or is this the file of another model?)"
        )
    for key, want in wanted.items():
        if named[key].shape != want.shape:
            raise ValueError(
                f"{key} has shape {tuple(named[key].shape)} in the file; the model needs "
                f"{tuple(want.shape)}"
            )
    ready = {key: named[key].to(want.dtype) for key, want in wanted.items()}
    module.load_state_dict(ready, assign=True)
    module.requires_grad_(False)
    return LoadReport(len(wanted), sorted(named.keys() - wanted.keys()))


def _module_name(key: str, wanted: Mapping[str, Tensor]) -> str:
    """Original `X.modulation` is the module's `X.modulation.weight`."""
    leaf = f"{key}.weight"
    return leaf if key not in wanted and leaf in wanted else key


def stored_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype in which most of a checkpoint's numbers are stored."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if not sizes:
        raise ValueError("the file holds no floating-point tensors")
    return max(sizes, key=lambda dtype: sizes[dtype])
