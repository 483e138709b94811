"""LoRA files: whose key names they use, which layers they are for, and what does not fit.

Names that mean the same layer: the original's, diffusers', either with any trainer's prefix, dots
or underscores between the parts. All become `diffusion_model.<original layer>.<part>`, which
ComfyUI knows. Parts keep their meaning: factors of a product (LoRA, LoKr, LoHa), a difference of
a weight (`diff`), of a bias (`diff_b`) or of a modulation (`diff_m`), …
"""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .checkpoint import Checkpoint, is_finite
from .key_maps import transformer_key_to_diffusers
from .recognise import looks_like

PREFIX = "diffusion_model."
Shapes = Mapping[str, tuple[int, ...]]

_PREFIXES = re.compile(
    r"^((model\.|diffusion_model\.|base_model\.model\.|transformer\.|unet\.|pipe\.|dit\.)+"
    r"|lora_unet__?|lora_transformer_|lycoris_)"
)
_PART = re.compile(
    r"[._](?P<part>lora_(?P<ab>[AB])(\.\w+)?(\.weight)?"
    r"|lora_(?P<way>up|down|mid)(\.\w+)?\.weight|lora(_linear_layer)?\.(?P<old>up|down)\.weight"
    r"|lora_magnitude_vector(\.\w+)*"
    r"|alpha|dora_scale|diff|diff_b|diff_m|set_weight|reshape_weight|w_norm|b_norm"
    r"|lokr_\w+|hada_\w+|oft_blocks|rescale|[ab][12]\.weight)$"
)
_FACTORS = ("lora_", "lokr_", "hada_")
_OF_IMAGES = re.compile(r"k_img|v_img|img_emb|add_k_proj|add_v_proj|image_embedder")
_MAGNITUDE = re.compile(r"lora_magnitude_vector")
_SHOWN = 5


@dataclass(frozen=True)
class MatchedLora:
    """A LoRA's tensors under ComfyUI's names for one model, and what was not used.

    `matched` counts keys of the file and `layers` the layers they change; `misfits` are keys of
    layers that this model has with another shape, `unmatched` those of layers it does not have.
    `decomposed` are layers with a magnitude by PEFT (DoRA), which `magnitude_for_host` converts.
    """

    tensors: dict[str, Tensor]
    matched: int
    layers: int
    for_images: bool
    ranks: tuple[int, int] | None
    misfits: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    decomposed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kind = "I2V LoRA" if self.for_images else "T2V LoRA (no image layers: it fits both kinds)"
        total = self.matched + len(self.misfits) + len(self.unmatched)
        text = f"{kind}, {_ranks(self.ranks)}: {self.matched} of {total} keys matched, "
        text += f"{self.layers} layers changed"
        if self.misfits:
            text += f"; {len(self.misfits)} have another shape here: {_some(self.misfits)}"
        if self.unmatched:
            text += f"; {len(self.unmatched)} did not match: {_some(self.unmatched)}"
        return text


@dataclass(frozen=True)
class PeftSettings:
    """How strongly PEFT's adapters act: `alpha`, and by the end of a layer's name another one."""

    alpha: float
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilised: bool = False

    def alpha_of(self, name: str, rank: int | None) -> float:
        """What ComfyUI, which divides by the rank, is to take for the layer `name`."""
        fitting = (p for p in self.alpha_pattern if re.fullmatch(rf"(.*\.)?({p})", name))
        pattern = next(fitting, None)
        alpha = self.alpha if pattern is None else self.alpha_pattern[pattern]
        # Rank-stabilised LoRA divides by the root of the rank.
        return alpha * (rank or 1) ** 0.5 if self.rank_stabilised else alpha


def match_lora(
    file: Checkpoint, layers: Shapes, settings: PeftSettings | None = None
) -> MatchedLora:
    """Find the model's layer of each key of a LoRA file.

    `layers` are the shapes of the model's weights by their original names, without `.weight`;
    `settings` are for a file that does not hold its own alphas (`peft_settings`). Raises
    ValueError when it is no LoRA, is broken (two ranks in one layer, half a pair, NaN), or fits
    no layer of the model.
    """
    names = _every_name(layers)
    found: dict[str, dict[str, tuple[str, Tensor]]] = {}
    unmatched = []
    for key, tensor in file.tensors.items():
        layer, part = _split(key, names)
        if layer is None or part in found.get(layer, {}):
            unmatched.append(key)  # of no layer, or a second one for the same place
        else:
            found.setdefault(layer, {})[part] = (key, tensor)
    if not found:
        raise ValueError(_nothing_matched(list(file.tensors)))
    kept: dict[str, Tensor] = {}
    misfits: list[str] = []
    ranks: list[int] = []
    used: dict[str, list[str]] = {}
    for layer, parts in found.items():
        tensors = {part: tensor for part, (_, tensor) in parts.items()}
        rank = _checked_rank(layer, tensors)
        if not _fits(tensors, layers[layer]):
            misfits += [key for key, _ in parts.values()]
            continue
        if rank is not None:
            ranks.append(rank)
        if settings is not None and any(part.startswith(_FACTORS) for part in tensors):
            name = _PART.sub("", next(iter(parts.values()))[0])
            tensors.setdefault("alpha", torch.tensor(settings.alpha_of(name, rank)))
        kept |= {f"{PREFIX}{layer}.{part}": tensor for part, tensor in tensors.items()}
        used[layer] = [key for key, _ in parts.values()]
    if not kept:
        raise ValueError(_another_size(misfits[0], file.tensors, found, layers))
    for_images = any(_OF_IMAGES.search(key) for key in file.tensors)
    span = (min(ranks), max(ranks)) if ranks else None
    count = sum(map(len, used.values()))
    decomposed = [layer for layer, keys in used.items() if any(map(_MAGNITUDE.search, keys))]
    return MatchedLora(kept, count, len(used), for_images, span, misfits, unmatched, decomposed)


def magnitude_for_host(weight: Tensor, lora: MatchedLora, layer: str) -> Tensor:
    """What ComfyUI is to take for a PEFT magnitude, so that the layer is PEFT's at strength 1.

    PEFT scales the rows of weight + change to the magnitude; ComfyUI multiplies them by magnitude
    over the norm of the weight alone. weight (rows, columns) -> (rows, 1). Source: Liu et al.,
    arXiv:2402.09353.
    """
    parts = {
        part: lora.tensors[f"{PREFIX}{layer}.{part}"].float()
        for part in ("lora_A.weight", "lora_B.weight", "dora_scale")
    }
    rank = parts["lora_A.weight"].shape[0]
    alpha = float(lora.tensors.get(f"{PREFIX}{layer}.alpha", torch.tensor(float(rank))))
    wide = weight.float()
    change = parts["lora_B.weight"] @ parts["lora_A.weight"] * (alpha / rank)
    norms = [x.norm(dim=1, keepdim=True) for x in (wide, wide + change)]
    return parts["dora_scale"] * norms[0] / norms[1]


def peft_settings(path: str | pathlib.Path, metadata: Mapping[str, str]) -> PeftSettings | None:
    """What PEFT and diffusers write beside the tensors, not among them; None if nothing.

    It is in the file's own metadata (diffusers), or in `adapter_config.json` (PEFT).
    Raises ValueError when that cannot be read.
    """
    path = pathlib.Path(path)
    beside = path.with_name("adapter_config.json")
    text = metadata.get("lora_adapter_metadata")
    if text is None and path.stem.startswith("adapter_model") and beside.is_file():
        text = beside.read_text(encoding="utf-8")
    if text is None:
        return None
    try:
        found = {k.removeprefix("transformer."): v for k, v in json.loads(text).items()}
        alpha = found.get("lora_alpha", found.get("alpha"))
        pattern = {name: float(one) for name, one in (found.get("alpha_pattern") or {}).items()}
        if alpha is None:
            return None
        if not all(map(math.isfinite, (float(alpha), *pattern.values()))):
            raise ValueError(f"alpha is {alpha}, of single layers {pattern}")
        return PeftSettings(float(alpha), pattern, bool(found.get("use_rslora")))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"the LoRA's settings beside {path.name} cannot be read: {error}"
        ) from error


def _every_name(layers: Shapes) -> dict[str, str]:
    """Each name by which a file may call a layer -> its original name."""
    names: dict[str, str] = {}
    for layer in layers:
        names[layer] = layer
        try:
            theirs = transformer_key_to_diffusers(f"{layer}.weight").removesuffix(".weight")
        except ValueError:
            continue
        names.setdefault(theirs, layer)
    return {**{name.replace(".", "_"): layer for name, layer in names.items()}, **names}


def _split(key: str, names: Mapping[str, str]) -> tuple[str | None, str]:
    """A key's original layer, None if the model has none, and its part under ComfyUI's name."""
    match = _PART.search(key)
    if match is None:
        return None, ""
    base = _PREFIXES.sub("", key[: match.start()]).replace(".processor.", ".")
    part = match["part"]
    if match["ab"]:
        part = f"lora_{match['ab']}.weight"
    elif match["way"] or match["old"]:
        part = f"lora_{match['way'] or match['old']}.weight"
    elif part.startswith("lora_magnitude_vector"):
        part = "dora_scale"
    elif part == "diff_m":
        base, part = f"{base}.modulation", "diff"
    return names.get(base), part


def _checked_rank(layer: str, tensors: dict[str, Tensor]) -> int | None:
    """The rank of a layer's pair of factors, if it has one; a magnitude gets ComfyUI's shape."""
    broken = [part for part, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise ValueError(f"{layer}.{broken[0]} holds numbers that are infinite or NaN")
    if "alpha" in tensors and tensors["alpha"].numel() != 1:
        raise ValueError(f"{layer} has {tensors['alpha'].numel()} numbers as alpha; it has one")
    if "dora_scale" in tensors and tensors["dora_scale"].ndim == 1:
        tensors["dora_scale"] = tensors["dora_scale"][:, None]
    for first, second in (("lora_A", "lora_B"), ("lora_down", "lora_up")):
        down, up = (tensors.get(f"{name}.weight") for name in (first, second))
        if down is None and up is None:
            continue
        if down is None or up is None:
            raise ValueError(
                f"{layer} has only one of {first} and {second}: the file is incomplete"
            )
        if min(down.ndim, up.ndim) < 2 or not down.numel() or not up.numel():
            raise ValueError(
                f"{layer} has {first} of shape {tuple(down.shape)} and {second} of "
                f"{tuple(up.shape)}, which are no factors of a weight: the file is broken"
            )
        if "lora_mid.weight" not in tensors and down.shape[0] != up.shape[1]:
            raise ValueError(
                f"{layer} has rank {down.shape[0]} in {first} and {up.shape[1]} in {second}; one "
                f"layer has one rank (different layers may differ): the file is broken"
            )
        return int(down.shape[0])
    return None


def _fits(tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> bool:
    """Whether a layer's parts are for a weight of this shape, as far as their shapes tell."""
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    for part, tensor in tensors.items():
        size = tuple(tensor.shape)
        if part in ("lora_A.weight", "lora_down.weight") and "lora_mid.weight" not in tensors:
            good = tensor.shape[1:].numel() == columns
        elif part in ("lora_B.weight", "lora_up.weight", "hada_w1_a", "hada_w2_a"):
            good = "hada_t1" in tensors or size[0] == rows
        elif part in ("diff", "set_weight"):
            good = size == shape
        elif part in ("diff_b", "b_norm"):
            good = size == (rows,)
        else:
            good = True
        if not good:
            return False
    first = tensors.get("lokr_w1", tensors.get("lokr_w1_a"))
    second = tensors.get("lokr_w2", tensors.get("lokr_w2_a"))
    if first is None or second is None or "lokr_t2" in tensors:
        return True
    return first.shape[0] * second.shape[0] == rows


def _nothing_matched(keys: list[str]) -> str:
    if not any(_PART.search(key) for key in keys):
        return f"this is not a LoRA: it looks like {looks_like(keys)} ({len(keys)} tensors)"
    return (
        f"none of its {len(keys)} keys belongs to a layer of this model; the first is {keys[0]!r}. "
        f"It is a LoRA for another kind of model, or of a trainer whose names are not known here"
    )


def _another_size(
    key: str,
    tensors: Mapping[str, Tensor],
    found: Mapping[str, Mapping[str, tuple[str, Tensor]]],
    layers: Shapes,
) -> str:
    layer = next(name for name, parts in found.items() if key in {k for k, _ in parts.values()})
    return (
        f"the LoRA fits no layer of this model: {key} has shape {tuple(tensors[key].shape)}, the "
        f"model's {layer} {layers[layer]}. A LoRA for 1.3B (width 1536) does not fit 14B (5120), "
        f"nor the other way round"
    )


def _ranks(span: tuple[int, int] | None) -> str:
    if span is None:
        return "no rank"
    return f"rank {span[0]}" if span[0] == span[1] else f"ranks {span[0]} to {span[1]}"


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
