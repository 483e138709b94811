"""What a LoRA file's parts for one layer make together, and whether that fits the layer's weight.

ComfyUI leaves out parts that are wrong with a line in its log, or fails on them while it samples;
what is checked here is what it would compute. Sources: LoRA (arXiv:2106.09685), DoRA (2402.09353),
LoHa, LoKr and GLoRA as LyCORIS writes them (2309.14859), OFT (2306.07280), BOFT (2311.06243).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..files.loading import is_finite

DOWN, UP, MAGNITUDE = "lora_down.weight", "lora_up.weight", "lora_magnitude_vector"
_SCALES = frozenset({"alpha", "dora_scale"})
# Of Tucker's decomposition, which is for kernels of images: no layer here has such.
_CORES = frozenset({"lora_mid.weight", "hada_t1", "hada_t2", "lokr_t2"})

Shape = tuple[int, ...]
Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Kind:
    """A way to change a weight: the sets of parts of which it has one, what may stand beside."""

    wholes: tuple[frozenset[str], ...]
    beside: frozenset[str] = frozenset()


_LOKR = tuple(
    frozenset({*first, *second})
    for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
    for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
)
# ComfyUI changes a weight in one way: the first here that a layer has is taken.
_KINDS = {
    "lora": _Kind((frozenset({DOWN, UP}),), _SCALES | {MAGNITUDE, "reshape_weight"}),
    "loha": _Kind((frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}),), _SCALES),
    "lokr": _Kind(_LOKR, _SCALES),
    "glora": _Kind((frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}),), _SCALES),
    "oft": _Kind((frozenset({"oft_blocks"}),), _SCALES | {"rescale"}),
    "diff": _Kind((frozenset({"diff"}),)),
    "set": _Kind((frozenset({"set_weight"}),)),
    "norm": _Kind((frozenset({"w_norm"}),), frozenset({"b_norm"})),
}

# What two factors make: the name of it, and of the factors; the one whose rank ComfyUI divides
# alpha by comes before the others of its kind.
_PAIRS = {
    UP: (UP, DOWN),
    "hada_w1": ("hada_w1_a", "hada_w1_b"),
    "hada_w2": ("hada_w2_a", "hada_w2_b"),
    "lokr_w2": ("lokr_w2_a", "lokr_w2_b"),
    "lokr_w1": ("lokr_w1_a", "lokr_w1_b"),
}


@dataclass(frozen=True)
class Change:
    """What is used of a layer's parts, and whether it fits the layer's weight.

    `adapts`: it is of factors that an alpha scales. `decomposed`: its `dora_scale` is a magnitude
    of rows, which `magnitude_for_host` converts.
    """

    tensors: dict[str, Tensor]
    used: frozenset[str]
    fits: bool
    adapts: bool
    decomposed: bool

    @property
    def rank(self) -> int | None:
        """Of a pair of factors; None for other ways."""
        return int(self.tensors[DOWN].shape[0]) if DOWN in self.tensors else None


def change_of(layer: str, parts: Parts, shape: Shape) -> Change:
    """What the parts, by ComfyUI's names, do to the weight of `shape` (rows, …) of `layer`.

    Raises ValueError, naming the layer, where one of a set of factors is absent, factors do not
    belong together, or numbers are none.
    """
    _check_numbers(layer, parts)
    name = next((n for n, kind in _KINDS.items() if _all_parts(kind) & parts.keys()), None)
    used, fits = frozenset({"diff_b"} & parts.keys()), True
    if name is not None:
        kind = _KINDS[name]
        whole = _find_whole(layer, kind, parts)
        used |= whole | (kind.beside & parts.keys())
        fits = not _CORES & parts.keys() and _FITS[name](layer, parts, shape)
    tensors = {part: tensor for part, tensor in parts.items() if part in used}
    scale = tensors.pop(MAGNITUDE, tensors.get("dora_scale"))
    if scale is not None:
        by_row = (MAGNITUDE in used or scale.ndim == 1) and scale.numel() == shape[0]
        tensors["dora_scale"] = scale = scale.reshape(-1, *_ones(shape)) if by_row else scale
    if name == "oft" and "alpha" in tensors:
        # Trainers bound the norm by alpha a row, ComfyUI by alpha.
        tensors["alpha"] = tensors["alpha"].float() * shape[0]
    fits = fits and all(_fits_beside(part, tensor, shape) for part, tensor in tensors.items())
    adapts = name in ("lora", "loha", "lokr")
    rows = scale is not None and tuple(scale.shape) == (shape[0], *_ones(shape))
    return Change(tensors, used, fits, adapts, adapts and rows)


def difference(parts: Parts) -> Tensor:
    """What the factors of a layer add to its weight at strength 1, (rows, columns) in float32.

    As ComfyUI computes it, which divides alpha by the rank of one pair (`_PAIRS`) and leaves it out
    where there is no pair.
    """
    wide = {part: tensor.float().flatten(1) for part, tensor in parts.items() if tensor.ndim > 1}
    made = {
        name: wide[first] @ wide[second]
        for name, (first, second) in _PAIRS.items()
        if first in wide
    }
    rank = next((len(wide[second]) for _, second in _PAIRS.values() if second in wide), None)
    scale = float(parts["alpha"]) / rank if rank and "alpha" in parts else 1.0
    if UP in wide:
        return made[UP] * scale
    if "hada_w1" in made:
        return made["hada_w1"] * made["hada_w2"] * scale
    first, second = (made.get(name, wide.get(name)) for name in ("lokr_w1", "lokr_w2"))
    assert first is not None and second is not None
    return torch.kron(first, second) * scale


def magnitude_for_host(weight: Tensor, parts: Parts) -> Tensor:
    """What ComfyUI is to take for a magnitude of rows, so that it acts as trained at strength 1.

    DoRA scales the rows of weight + difference to the magnitude; ComfyUI multiplies them by the
    magnitude over the norm of the weight alone. weight (rows, …) -> (rows, 1, …). Source: Liu et
    al., arXiv:2402.09353.
    """
    magnitude, wide = parts["dora_scale"].float(), weight.float().flatten(1)
    norms = [x.norm(dim=1).reshape(magnitude.shape) for x in (wide, wide + difference(parts))]
    return magnitude * norms[0] / norms[1]


def _all_parts(kind: _Kind) -> frozenset[str]:
    return frozenset().union(*kind.wholes)


def _ones(shape: Shape) -> Shape:
    return (1,) * (len(shape) - 1)


def _check_numbers(layer: str, parts: Parts) -> None:
    for part, tensor in parts.items():
        # ComfyUI computes in float32, which has no room for all that float64 has.
        given = tensor.float() if tensor.dtype == torch.float64 else tensor
        if not is_finite(given):
            raise ValueError(
                f"{layer}.{part} holds numbers that are infinite or NaN, or too large for float32"
            )
        if not tensor.is_floating_point() and part not in ("alpha", "reshape_weight"):
            raise ValueError(
                f"{layer}.{part} is stored as {str(tensor.dtype)[6:]}, which are no numbers of a "
                f"LoRA; use one in fp16, bf16 or fp32"
            )
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise ValueError(f"{layer} has {parts['alpha'].numel()} numbers as alpha; it has one")


def _find_whole(layer: str, kind: _Kind, parts: Parts) -> frozenset[str]:
    """Which of a kind's sets of parts a layer has; ValueError if none is whole."""
    nearest = min(kind.wholes, key=lambda whole: len(whole - parts.keys()))
    absent = sorted(nearest - parts.keys())
    if absent:
        raise ValueError(
            f"{layer} has {' and '.join(sorted(_all_parts(kind) & parts.keys()))}, but not "
            f"{' and '.join(absent)}: the file is incomplete"
        )
    return nearest


def _product(layer: str, first: str, second: str, parts: Parts) -> Shape:
    """(rows, columns) of what two factors make, kernels flattened; ValueError if they make none."""
    left, right = parts[first], parts[second]
    if min(left.ndim, right.ndim) < 2 or not left.numel() or not right.numel():
        raise ValueError(
            f"{layer} has {first} of shape {tuple(left.shape)} and {second} of "
            f"{tuple(right.shape)}, which are no factors of a weight: the file is broken"
        )
    if left.shape[1:].numel() != right.shape[0]:
        raise ValueError(
            f"{layer} has rank {left.shape[1:].numel()} in {first} and {right.shape[0]} in "
            f"{second}; one layer has one rank (different layers may differ): the file is broken"
        )
    return left.shape[0], right.shape[1:].numel()


def _flatten(shape: Shape) -> Shape:
    return shape[0], math.prod(shape[1:])


def _fits_lora(layer: str, parts: Parts, shape: Shape) -> bool:
    return _product(layer, UP, DOWN, parts) == _flatten(shape)


def _fits_loha(layer: str, parts: Parts, shape: Shape) -> bool:
    products = [_product(layer, f"hada_w{i}_a", f"hada_w{i}_b", parts) for i in (1, 2)]
    return products == [_flatten(shape)] * 2


def _fits_lokr(layer: str, parts: Parts, shape: Shape) -> bool:
    made = []
    for name in ("lokr_w1", "lokr_w2"):
        plain = parts.get(name)
        if plain is None:
            made.append(_product(layer, f"{name}_a", f"{name}_b", parts))
        elif plain.ndim == 2:
            made.append(tuple(plain.shape))
        else:
            return False  # ComfyUI's product of such is another one
    (a, b), (c, d) = made
    return (a * c, b * d) == _flatten(shape)


def _fits_glora(layer: str, parts: Parts, shape: Shape) -> bool:
    """LyCORIS had another order of the factors at first, which only their shapes tell."""
    sizes = {name: tuple(parts[f"{name}.weight"].shape) for name in ("a1", "a2", "b1", "b2")}
    if len(shape) != 2 or any(len(size) != 2 for size in sizes.values()):
        return False
    rows, columns = shape
    (a1, a2, b1, b2), rank = sizes.values(), sizes["a1"][1]
    new = [a1, a2, b1, b2] == [(columns, rank), (rank, columns), (rows, rank), (rank, columns)]
    rank = a1[0]
    old = [a1, a2, b1, b2] == [(rank, columns), (columns, rank), (rank, columns), (rows, rank)]
    return new or old


def _fits_oft(layer: str, parts: Parts, shape: Shape) -> bool:
    """Blocks (count, n, n) or, butterfly, (stages, count, n, n) turn the rows in groups of n.

    ComfyUI rescales what butterflies turned, and only that.
    """
    blocks = parts["oft_blocks"]
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        return False
    count, size = blocks.shape[-3:-1]
    if blocks.ndim == 3:
        return count * size == shape[0] and "rescale" not in parts
    # ComfyUI compares a butterfly's alpha, and pairs groups twice as far apart at each stage.
    even = size > 0 and not size % 2 and not shape[0] % (2 ** blocks.shape[0] * (size // 2))
    return "alpha" in parts and count * size == shape[0] and even


def _fits_same(layer: str, parts: Parts, shape: Shape) -> bool:
    """Differences and replacements, of which the first is taken, are of the weight's own shape."""
    own = next(parts[p] for p in ("diff", "set_weight", "w_norm") if p in parts)
    return tuple(own.shape) == shape


_FITS = {
    "lora": _fits_lora,
    "loha": _fits_loha,
    "lokr": _fits_lokr,
    "glora": _fits_glora,
    "oft": _fits_oft,
    "diff": _fits_same,
    "set": _fits_same,
    "norm": _fits_same,
}


def _fits_beside(part: str, tensor: Tensor, shape: Shape) -> bool:
    size = tuple(tensor.shape)
    if part in ("diff_b", "b_norm"):
        return size == shape[:1]
    if part == "reshape_weight":
        return tensor.tolist() == list(shape)  # another one would make another layer
    if part in ("dora_scale", "rescale"):
        return size in ((shape[0], *_ones(shape)), (1, *shape[1:2], *_ones(shape)[1:]))
    return True
