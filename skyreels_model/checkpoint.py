"""Files to tensors, tensors to modules."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import mapped
from .gguf_file import read_gguf, require_architecture
from .key_maps import rename_diffusers_transformer
from .quantized import NEEDED_WITH_WEIGHTS, QuantizedWeight, Weights, gather_scaled
from .tensor_files import kind_of, read_tensors

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")
MARKER = "model_type."
SHARD = re.compile(
    r"^(?P<stem>.+)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.safetensors|\.sft|\.bin)$"
)
_HIGHEST_FINITE = {torch.float8_e4m3fn: 0x7E, torch.float8_e5m2: 0x7B}


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file or of a set of shards, by name, with the file's own metadata.

    Of a GGUF file some are quantised (`QuantizedWeight`). mapped: addresses of storages that are
    parts of a memory-mapped file.
    """

    tensors: dict[str, Any]
    metadata: dict[str, str]
    mapped: frozenset[int] = frozenset()

    def release(self, tensor: Tensor) -> None:
        """Keep a tensor of this file no longer in memory, where the file itself can give it again.

        For tensors that nothing has written to.
        """
        if tensor.untyped_storage().data_ptr() in self.mapped and tensor.is_contiguous():
            mapped.release(tensor)


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

    Memory-mapped wherever the file allows it. What kind of file it is, its content tells. Raises
    ValueError, naming the file, when it is truncated, incomplete or of another kind;
    FileNotFoundError when there is none.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if kind_of(path) == "GGUF":
        return Checkpoint(*read_gguf(path))
    return _read_shards(shard_files(path))


def shard_files(path: pathlib.Path) -> list[pathlib.Path]:
    """All files of the set that `path` belongs to; ValueError if one of them is missing."""
    match = SHARD.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    files = [
        path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}{match['suffix']}")
        for i in range(1, count + 1)
    ]
    if path not in files:
        return [path]
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
    addresses: set[int] = set()
    dtypes: dict[str, tuple[torch.dtype | None, str]] = {}
    for file in files:
        part, part_metadata, is_mapped = read_tensors(file)
        twice = tensors.keys() & part.keys()
        if twice:
            raise ValueError(f"{file.name}: {min(twice)!r} is in another shard, too")
        if len(files) > 1:
            _refuse_another_precision(file.name, part, dtypes)
        tensors.update(part)
        metadata.update(part_metadata)
        if is_mapped:
            addresses.update(t.untyped_storage().data_ptr() for t in part.values())
    return Checkpoint(tensors, metadata, frozenset(addresses))


def _refuse_another_precision(
    name: str, part: Mapping[str, Tensor], seen: dict[str, tuple[torch.dtype | None, str]]
) -> None:
    """Raise ValueError if a shard stores a weight otherwise than another shard in another block.

    `seen` has the dtype of each weight, its block's number left out, and the shard it was in;
    None where one shard has several, as files have that keep some blocks finer on purpose. Weights
    with scales beside them are left out for the same reason.
    """
    found: dict[str, set[torch.dtype]] = {}
    places = [key.rpartition(".") for key in part]
    scaled = {layer for layer, _, leaf in places if leaf in NEEDED_WITH_WEIGHTS}
    for key, tensor in part.items():
        plain = key.rpartition(".")[0] not in scaled
        if plain and tensor.ndim >= 2 and tensor.is_floating_point():
            found.setdefault(re.sub(r"\d+", "#", key, count=1), set()).add(tensor.dtype)
    for role, dtypes in found.items():
        dtype = next(iter(dtypes)) if len(dtypes) == 1 else None
        before, other = seen.setdefault(role, (dtype, name))
        if dtype is None:
            seen[role] = (None, name)
        elif before not in (None, dtype):
            raise ValueError(
                f"{name} stores {role} as {str(dtype)[6:]}, {other} as {str(before)[6:]}: these "
                f"are shards of two downloads in different precision; delete one of the two and "
                f"fetch what is then missing"
            )


def transformer_tensors(
    tensors: Weights, metadata: Mapping[str, str] | None = None
) -> dict[str, Tensor | QuantizedWeight]:
    """A diffusion model's weights under their original names, from every published layout.

    Prefixes and markers are removed, diffusers' names translated, and weights with scales put
    together with them. What has not the prefix (`other_tensors`) is left out. Raises ValueError
    for scales that cannot be read, and for a GGUF file of another architecture.
    """
    require_architecture(metadata or {}, "wan")
    prefix = _prefix(tensors)
    own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    own = {k: v for k, v in own.items() if not k.startswith(MARKER)}
    return rename_diffusers_transformer(gather_scaled(own, metadata or {}, prefix))


def other_tensors(tensors: Weights) -> list[str]:
    """Names of what a file holds beside a diffusion model, such as a VAE."""
    prefix = _prefix(tensors)
    return sorted(k for k in tensors if not k.startswith((prefix, MARKER)))


def _prefix(tensors: Weights) -> str:
    """What stands before all names of a transformer: a published prefix, or any other."""
    mark = "patch_embedding.weight"
    found = [p for p in ("", *PREFIXES) if f"{p}{mark}" in tensors]
    found += [
        prefix
        for prefix in (key.removesuffix(mark) for key in tensors if key.endswith(f".{mark}"))
        if any(key.startswith(f"{prefix}blocks.0.") for key in tensors)
    ]
    return found[0] if found else ""


def published_name(path: str | pathlib.Path) -> str:
    """The part of a path that tells the variant: the file's own name and its folder's."""
    path = pathlib.Path(path)
    return f"{path.parent.name}/{path.name}"


def load_weights(
    module: nn.Module,
    weights: Weights,
    layout: nn.Module | None = None,
    keeps_quantized: Callable[[str], bool] = lambda key: False,
    release: Callable[[Tensor], None] = lambda tensor: None,
) -> LoadReport:
    """Put a checkpoint's weights in a module built on the meta device, without a second copy.

    A tensor is converted only where the module asks for another dtype, and then given to `release`:
    with that of its `Checkpoint`, memory never holds the whole file beside what it became. `layout`
    is a twin of the module with plain PyTorch layers, needed where a host's layers have no weights
    before they are loaded; `keeps_quantized` says which of them take a quantised weight as it is,
    all others get its numbers. Raises ValueError, before anything is put in place, if a weight is
    missing, of another shape or not a number.
    """
    wanted = (layout or module).state_dict()
    named: dict[str, Tensor | QuantizedWeight] = {}
    for key, value in weights.items():
        name = _module_name(key, wanted)
        if name in named:
            raise ValueError(f"{name} is in the file twice, under two names")
        named[name] = value
    _check(named, wanted)
    ready: dict[str, Tensor] = {}
    for key, want in wanted.items():
        value = named[key]
        # Checked where it is used, so that the file is read once, from its beginning to its end.
        _check_finite(key, value)
        if not isinstance(value, Tensor):
            kept = keeps_quantized(key)
            ready.update(value.entries(key) if kept else {key: value.dequantize(want.dtype)})
            continue
        ready[key] = _converted(key, value, want.dtype)
        if ready[key] is not value:
            release(value)
    module.load_state_dict(ready, assign=True)
    module.requires_grad_(False)
    return LoadReport(len(wanted), sorted(named.keys() - wanted.keys()))


def _check(named: Weights, wanted: Mapping[str, Tensor]) -> None:
    missing = [key for key in wanted if key not in named]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} weights are missing, the first is {missing[0]!r} "
            f"(is a shard missing, or is this the file of another model?)"
        )
    for key, want in wanted.items():
        value = named[key]
        if value.shape != want.shape:
            raise ValueError(
                f"{key} has shape {tuple(value.shape)} in the file; the model needs "
                f"{tuple(want.shape)}"
            )
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise ValueError(
                f"{key} is stored as {str(value.dtype)[6:]}, which are no numbers of a weight "
                f"without a description; use an fp8, bf16, fp16 or fp32 file"
            )
    for key in named:
        if key not in wanted and key.rpartition(".")[2] in NEEDED_WITH_WEIGHTS:
            raise ValueError(
                f"the file is quantised with scales that are not read for this kind of model (it "
                f"has {key!r}); use an fp8 one without scales, or bf16, fp16 or fp32"
            )


def _converted(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in another format; ValueError where its numbers are too large for that."""
    made = value.to(dtype)
    # bfloat16's largest number is a little below float32's, which no weight comes near.
    largest = torch.finfo(dtype).max
    narrower = largest < torch.finfo(value.dtype).max / 2 and not value.is_meta
    if narrower and value.numel() and max(map(abs, map(float, torch.aminmax(value)))) > largest:
        raise ValueError(
            f"{key} holds numbers beyond {largest:g}, the largest of {str(dtype)[6:]}: load it as "
            f"bf16 or fp32, or get another file"
        )
    return made


def _check_finite(key: str, value: Tensor | QuantizedWeight) -> None:
    parts = [value] if isinstance(value, Tensor) else value.floats()
    if not all(map(is_finite, parts)):
        raise ValueError(
            f"{key} holds numbers that are infinite or not a number (NaN); the file was "
            f"converted wrongly: get another one, or convert it anew, to bf16"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; reads the tensor once and allocates nothing of its size."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    if tensor.dtype in _HIGHEST_FINITE:
        # 8-bit floats have no reductions. Read as integers, those that are not finite are the
        # highest positive ones, and with a sign the highest of all.
        limit = _HIGHEST_FINITE[tensor.dtype]
        positive, signed = tensor.view(torch.int8), tensor.view(torch.uint8)
        return int(torch.aminmax(positive)[1]) <= limit and (
            int(torch.aminmax(signed)[1]) <= limit | 0x80
        )
    if tensor.element_size() == 1:
        return True  # a host's formats of scales, which have no reductions either
    lowest, highest = torch.aminmax(tensor)
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))


def _module_name(key: str, wanted: Mapping[str, Tensor]) -> str:
    """Original `X.modulation` is the module's `X.modulation.weight`."""
    leaf = f"{key}.weight"
    return leaf if key not in wanted and leaf in wanted else key


def stored_dtype(weights: Weights) -> torch.dtype:
    """The dtype in which most of a checkpoint's plain numbers are stored.

    Raises ValueError where there are none.
    """
    sizes: dict[torch.dtype, int] = {}
    for tensor in weights.values():
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    if not sizes:
        raise ValueError("the file holds no floating-point tensors")
    return max(sizes, key=lambda dtype: sizes[dtype])


def quantization(weights: Weights) -> str:
    """How a checkpoint is quantised, such as "280 of 1095 scaled float8_e4m3fn"; "none" if not."""
    kinds = [w.kind for w in weights.values() if not isinstance(w, Tensor)]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    named = [f"{count} of {len(weights)} {kind}" for kind, count in counts.items()]
    plain = sorted({str(w.dtype)[6:] for w in weights.values() if isinstance(w, Tensor)})
    named += [f"plain {name}" for name in plain if name.startswith("float8")]
    return ", ".join(named) or "none"
