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

from ..files.checkpoint import Checkpoint
from ..files.keys import looks_like
from ..model.config import IN_DIMS
from ..model.names import transformer_key_to_diffusers
from .parts import DOWN, MAGNITUDE, UP, Change, Shape, change_of

PREFIX = "diffusion_model."
Shapes = Mapping[str, Shape]

_PREFIXES = re.compile(
    r"^((model\.|diffusion_model\.|base_model\.model\.|transformer\.|unet\.|pipe\.|dit\.|generator\.)+"
    r"|(lora_unet__?|lora_transformer_|lycoris_)(_?orig_mod_|_?fsdp_wrapped_module_)?)"
)
_PART = re.compile(
    # Between the kind and `weight` the adapter's name, which may be anything without a dot.
    r"[._](?P<part>lora_(?P<ab>[AB])(\.[^.]+)?(\.weight)?"
    r"|lora_(?P<way>up|down|mid)(\.[^.]+)?\.weight|lora(_linear_layer)?\.(?P<old>up|down)\.weight"
    r"|lora_magnitude_vector(\.[^.]+)*"
    r"|alpha|dora_scale|diff|diff_b|diff_m|set_weight|reshape_weight|w_norm|b_norm"
    r"|lokr_\w+|hada_\w+|oft_blocks|rescale|[ab][12]\.weight)$"
)
_OF_IMAGES = re.compile(r"k_img|v_img|img_emb|add_k_proj|add_v_proj|image_embedder")
_SHOWN = 5
# Layer -> part under ComfyUI's name -> key and tensor of the file.
_Found = dict[str, dict[str, tuple[str, Tensor]]]


@dataclass(frozen=True)
class MatchedLora:
    """A LoRA's tensors under ComfyUI's names for one model, and what was not used.

    `matched` counts keys of the file and `layers` the layers they change; `misfits` are keys that
    do not fit their layer of this model, `unmatched` those of layers that it does not have.
    `decomposed` are layers with a magnitude of rows (DoRA), which `magnitude_for_host` converts.
    """

    tensors: dict[str, Tensor]
    matched: int
    layers: int
    for_images: bool
    ranks: tuple[int, int] | None
    misfits: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    decomposed: list[str] = field(default_factory=list)

    def parts(self, layer: str) -> dict[str, Tensor]:
        """What there is for a layer, by part."""
        begin = f"{PREFIX}{layer}."
        return {k.removeprefix(begin): t for k, t in self.tensors.items() if k.startswith(begin)}

    def __str__(self) -> str:
        kind = "I2V LoRA" if self.for_images else "T2V LoRA (no image layers: it fits both kinds)"
        total = self.matched + len(self.misfits) + len(self.unmatched)
        text = f"{kind}, {_ranks(self.ranks)}: {self.matched} of {total} keys matched, "
        text += f"{self.layers} layers changed"
        if self.misfits:
            text += f"; {len(self.misfits)} do not fit here: {_list_some(self.misfits)}"
        if self.unmatched:
            text += f"; {len(self.unmatched)} did not match: {_list_some(self.unmatched)}"
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
    found, unmatched = _group_by_layer(file.tensors, _every_name(layers))
    if not found:
        raise ValueError(_explain_no_match(list(file.tensors)))
    changes: dict[str, Change] = {}
    misfits: list[str] = []
    for layer, parts in found.items():
        tensors = {part: tensor for part, (_, tensor) in parts.items()}
        change = change_of(layer, tensors, layers[layer])
        if not change.fits:
            misfits += [key for key, _ in parts.values()]
            continue
        unmatched += [key for part, (key, _) in parts.items() if part not in change.used]
        if settings is not None and change.adapts:
            name = _PART.sub("", next(iter(parts.values()))[0])
            alpha = torch.tensor(settings.alpha_of(name, change.rank))
            change.tensors.setdefault("alpha", alpha)
        if change.used:
            changes[layer] = change
    if not changes:
        raise ValueError(_explain_no_use(misfits, found, layers))
    ranks = [change.rank for change in changes.values() if change.rank is not None]
    return MatchedLora(
        {f"{PREFIX}{n}.{part}": t for n, c in changes.items() for part, t in c.tensors.items()},
        sum(len(change.used) for change in changes.values()),
        len(changes),
        _is_for_images(file.tensors),
        (min(ranks), max(ranks)) if ranks else None,
        misfits,
        unmatched,
        [layer for layer, change in changes.items() if change.decomposed],
    )


def _group_by_layer(
    tensors: Mapping[str, Tensor], names: Mapping[str, str]
) -> tuple[_Found, list[str]]:
    """The tensors by layer and part, and keys of no layer, or second ones for the same place."""
    found: _Found = {}
    unmatched = []
    for key, tensor in tensors.items():
        layer, part = _split(key, names)
        if layer is None or part in found.get(layer, {}):
            unmatched.append(key)
        else:
            found.setdefault(layer, {})[part] = (key, tensor)
    return found, unmatched


def _is_for_images(tensors: Mapping[str, Tensor]) -> bool:
    """Whether it changes what only an image-to-video model has."""
    return any(
        _OF_IMAGES.search(key)
        or ("patch_embedding" in key and tensor.ndim == 5 and tensor.shape[1] == IN_DIMS["i2v"])
        for key, tensor in tensors.items()
    )


def peft_settings(path: str | pathlib.Path, metadata: Mapping[str, str]) -> PeftSettings | None:
    """What PEFT and diffusers write beside the tensors, not among them; None if nothing.

    It is in the file's own metadata (diffusers), or in `adapter_config.json` (PEFT).
    Raises ValueError when that cannot be read.
    """
    path = pathlib.Path(path)
    beside = path.with_name("adapter_config.json")
    text = metadata.get("lora_adapter_metadata")
    try:
        if text is None and path.stem.startswith("adapter_model") and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        if text is None:
            return None
        found = {k.removeprefix("transformer."): v for k, v in json.loads(text).items()}
        alpha = found.get("lora_alpha", found.get("alpha"))
        pattern = {name: float(one) for name, one in (found.get("alpha_pattern") or {}).items()}
        if alpha is None:
            return None
        if not all(map(math.isfinite, (float(alpha), *pattern.values()))):
            raise ValueError(f"alpha is {alpha}, of single layers {pattern}")
        for name in pattern:
            re.compile(name)
        return PeftSettings(float(alpha), pattern, bool(found.get("use_rslora")))
    except (ValueError, TypeError, AttributeError, re.error) as error:
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
        part = DOWN if match["ab"] == "A" else UP
    elif match["way"] or match["old"]:
        part = f"lora_{match['way'] or match['old']}.weight"
    elif part.startswith(MAGNITUDE):
        part = MAGNITUDE
    elif part == "diff_m":
        base, part = f"{base}.modulation", "diff"
    return names.get(base), part


def _explain_no_match(keys: list[str]) -> str:
    if not any(_PART.search(key) for key in keys):
        return f"this is not a LoRA: it looks like {looks_like(keys)} ({len(keys)} tensors)"
    return (
        f"none of its {len(keys)} keys belongs to a layer of this model; the first is {keys[0]!r}. "
        f"It is a LoRA for another kind of model, or of a trainer whose names are not known here"
    )


def _explain_no_use(misfits: list[str], found: _Found, layers: Shapes) -> str:
    if not misfits:
        layer, parts = next(iter(found.items()))
        return (
            f"the LoRA changes nothing: of {layer} it has only {' and '.join(parts)}, without "
            f"what that belongs to"
        )
    layer, parts = next(
        (n, p) for n, p in found.items() if misfits[0] in {k for k, _ in p.values()}
    )
    sizes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in parts.values())
    return (
        f"the LoRA fits no layer of this model: it has {sizes}, but the model's {layer} is of "
        f"shape {layers[layer]}. A LoRA for 1.3B (width 1536) does not fit 14B (5120), nor the "
        f"other way round"
    )


def _ranks(span: tuple[int, int] | None) -> str:
    if span is None:
        return "no rank"
    return f"rank {span[0]}" if span[0] == span[1] else f"ranks {span[0]} to {span[1]}"


def _list_some(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
