"""Named tensors into a module, and the report of what happened to each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .quantized import NEEDED_WITH_WEIGHTS, QuantizedWeight, Weights

_HIGHEST_FINITE = {torch.float8_e4m3fn: 0x7E, torch.float8_e5m2: 0x7B}


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
        ready[key] = _convert(key, value, want.dtype)
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


def _convert(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
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
            f"converted wrongly: get another one, or convert it again, to bf16"
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
