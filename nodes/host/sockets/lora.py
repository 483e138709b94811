"""LoRA files onto a MODEL, by the host's own patches."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_patcher
from torch import nn

from ....skyreels_model.files import checkpoint
from ....skyreels_model.lora.match import PREFIX, match_lora, peft_settings
from ....skyreels_model.lora.parts import magnitude_for_host
from .patcher import original_weight


@dataclass(frozen=True)
class HostLora:
    """A LoRA as the host's patches for one model, and a line about what matched."""

    patches: dict[str, Any]
    report: str

    def put_on(
        self, model: comfy.model_patcher.ModelPatcher, strength: float
    ) -> comfy.model_patcher.ModelPatcher:
        """A copy of that model's patcher with the LoRA on it.

        The model itself is shared: its weights are neither read nor copied again.
        """
        patched = model.clone()
        patched.add_patches(self.patches, strength)
        return patched


def apply_lora(
    model: comfy.model_patcher.ModelPatcher, path: pathlib.Path, strength: float
) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """A copy of the patcher with the LoRA on it, and a line about what matched."""
    lora = read_lora(model, path)
    return lora.put_on(model, strength), lora.report


def read_lora(model: comfy.model_patcher.ModelPatcher, path: pathlib.Path) -> HostLora:
    """A LoRA for this model, whatever its strength."""
    module = model.get_model_object("diffusion_model")
    file = checkpoint.read(path)
    matched = match_lora(file, layer_shapes(module), peft_settings(path, file.metadata))
    for layer in matched.decomposed:
        weight = original_weight(model, f"{PREFIX}{layer}.weight")
        scale = magnitude_for_host(weight, matched.parts(layer))
        matched.tensors[f"{PREFIX}{layer}.dora_scale"] = scale
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(matched.tensors, names)
    taken = model.clone().add_patches(patches)
    report = str(matched)
    dropped = sorted(patches.keys() - set(taken))
    if dropped:
        report += f"; the model has no {', '.join(dropped)}"
    if matched.for_images and getattr(model.model, "image_to_video", None) is False:
        report += ". Caution: an I2V LoRA on a model without image layers; it may do harm"
    return HostLora(patches, file.add_note(report))


def layer_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The logical shapes of a transformer's weights by layer, whatever they are stored as.

    Without parameters that lie beside child modules, as the modulations of the host's own Wan do:
    the host accepts patches for them and never applies them.
    """
    state = module.state_dict().items()
    shapes = {k.removesuffix(".weight"): tuple(v.shape) for k, v in state if k.endswith(".weight")}
    for name, layer in module.named_modules():
        if isinstance(getattr(layer, "in_features", None), int):
            shapes[name] = (layer.out_features, layer.in_features)
    return shapes
