"""Our diffusion transformer as the host's MODEL: patchable, movable, loaded in parts."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models
import torch
from torch import Tensor

from ....skyreels_model.files import loading
from ....skyreels_model.files.quantized import Weights
from ....skyreels_model.model import identity, names
from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.model.identity import CAUSAL
from ....skyreels_model.model.network import SkyReelsModel
from ....skyreels_model.operations import Unfilled
from .. import direct_reads, notice
from . import quantized
from .attention import find_attention
from .gguf import GGUFPatcher
from .kept import KEEPING, HostKeeping
from .memory import holds, memory_required, note_execution
from .patcher import hook_on_the_fly, patcher_type
from .sharing import nobody
from .transformer import HostDiT

WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
VARIANTS = ("auto", "DF", "T2V", "I2V", CAUSAL)
VARIANT_KEY = "skyreels_v2_variant"
# What core's Wan has parts for that ours has not, by the name in a prompt.
NOT_TAKEN = {
    "reference_latents": "a reference image",
    "context_latents": "context images",
    "control": "a ControlNet",
}


class HostModel(comfy.model_base.WAN21):
    """The host's model around it: flow sampling, and the conditions that Wan nodes set."""

    def __init__(self, config: HostConfig, device: torch.device | str | None) -> None:
        # WAN21's own constructor would build the host's transformer.
        super(comfy.model_base.WAN21, self).__init__(
            config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostDiT
        )
        # See `note_execution`.
        self.compiled, self.overridden, self.residuals, self.sharing = False, False, 0, nobody
        self.kept: tuple[int, HostKeeping] | None = None
        self.image_to_video = config.unet_config["skyreels"].model_type == "i2v"

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        for key, what in NOT_TAKEN.items():
            if kwargs.get(key) is not None:
                raise ValueError(
                    f"a prompt carries {what} ({key}), which this model does not take: it would be "
                    f"ignored. Connect the prompt without that node, or load a model that is made "
                    f"for it with ComfyUI's own loader"
                )
        out = super().extra_conds(**kwargs)
        fps = kwargs.get("fps")
        if fps is not None:
            out["fps"] = comfy.conds.CONDRegular(torch.tensor([float(fps)]))
        return out

    def memory_required(
        self,
        input_shape: Sequence[int],
        cond_shapes: Mapping[str, Any] = {},  # noqa: B006 (the host's signature)
    ) -> float:
        """Bytes that sampling takes beside the weights; the host frees as much before it begins."""
        if len(input_shape) != 5:  # several models' latents, packed as one
            return super().memory_required(input_shape, cond_shapes)
        needed: float = memory_required(self, input_shape, cond_shapes)
        if holds(self.diffusion_model.attention):
            needed = max(needed, super().memory_required(input_shape, cond_shapes))
        return needed


class HostConfig(comfy.supported_models.WAN21_T2V):
    """What the host wants to know of a model before it is built."""

    # The published models were trained in bf16, whose range fp16 does not have.
    supported_inference_dtypes = [torch.bfloat16, torch.float16, torch.float32]

    def get_model(
        self, state_dict: Any = None, prefix: str = "", device: torch.device | str | None = None
    ) -> HostModel:
        return HostModel(self, device)

    def process_unet_state_dict_for_saving(
        self, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        original = {
            k.replace(".modulation.weight", ".modulation"): v for k, v in state_dict.items()
        }
        return super().process_unet_state_dict_for_saving(original)


def load_model(
    path: pathlib.Path,
    weight_dtype: str = "default",
    attention: str = "auto",
    variant: str = "auto",
    disable_dynamic: bool = False,
) -> tuple[comfy.model_patcher.ModelPatcher, str]:
    """A checkpoint as a patcher, and one line that says what it is."""
    file = direct_reads.read(path)
    stored = names.transformer_tensors(file.tensors, file.metadata)
    skyreels = ModelConfig.from_state_dict(stored)
    weights, note = quantized.make_readable(stored)
    config = _host_config(skyreels, weights, weight_dtype)
    computed = config.manual_cast_dtype or config.unet_config["dtype"]
    config.unet_config["attention"] = find_attention(attention, computed, skyreels.head_dim)
    dtype = config.unet_config["dtype"]
    model = config.get_model(device="meta")
    layout = SkyReelsModel(skyreels, Unfilled, dtype=dtype, device="meta")
    module = model.diffusion_model
    kept = quantized.keeps_quantized(module)
    report = loading.load_weights(module, weights, layout, kept, file.release)
    model.device = comfy.model_management.unet_offload_device()
    model.to(model.device)
    made = GGUFPatcher if quantized.is_gguf(weights) else patcher_type(disable_dynamic)
    patcher = made(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=model.device,
    )
    if config.custom_operations is not None:
        hook_on_the_fly(patcher)
    found = identity.variant(skyreels, path, variant, file.metadata)
    patcher.model_options["transformer_options"][VARIANT_KEY] = found
    comfy.patcher_extension.add_wrapper_with_key(
        comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING,
        VARIANT_KEY,
        note_execution,
        patcher.model_options,
        is_model_options=True,
    )
    patcher.cached_patcher_init = (load_patcher, (path, weight_dtype, attention, variant))
    if found == CAUSAL:
        kind = comfy.patcher_extension.WrappersMP.OUTER_SAMPLE
        comfy.patcher_extension.add_wrapper_with_key(
            kind, CAUSAL, warn_full_attention, patcher.model_options, is_model_options=True
        )
    unused = [*report.unexpected, *names.other_tensors(file.tensors)]
    report = loading.LoadReport(report.matched, unused)
    summary = identity.transformer(skyreels, stored, path, found, dtype, report, note)
    return patcher, file.add_note(summary)


def _host_config(skyreels: ModelConfig, weights: Weights, weight_dtype: str) -> HostConfig:
    """The host's description of a model: sizes, number formats, and the layers it is made of."""
    config = HostConfig(
        {
            "image_model": "wan2.1",
            "model_type": skyreels.model_type,
            "dim": skyreels.dim,
            "skyreels": skyreels,
        }
    )
    management, dtypes = comfy.model_management, config.supported_inference_dtypes
    device, asked = management.get_torch_device(), WEIGHT_DTYPES[weight_dtype]
    if any(not isinstance(weight, Tensor) for weight in weights.values()):
        # What is quantised stays so; `weight_dtype` is for the rest, and what it is computed in.
        if asked is None or asked.itemsize == 1:
            asked = management.unet_manual_cast(None, device, dtypes)
        config.set_inference_dtype(asked, asked)
        config.custom_operations = quantized.operations(weights, asked)
        return config
    choose = functools.partial(
        management.unet_dtype, model_params=identity.parameters(weights), supported_dtypes=dtypes
    )
    dtype = asked or choose(weight_dtype=loading.stored_dtype(weights))
    if not management.supports_cast(device, dtype):
        if asked is not None:
            raise ValueError(
                f"weight_dtype is {weight_dtype!r}, which this machine's device ({device}) cannot "
                f"hold; choose default, bf16, fp16 or fp32"
            )
        dtype = choose()
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, dtypes))
    return config


def warn_full_attention(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The host's hook around a run of any sampler: say so where blocks see those after them."""
    if KEEPING not in executor.class_obj.model_options["transformer_options"]:
        notice.warn(
            "The model's variant is causal, and this sampler lets all of its frames see each "
            "other. Use SkyReels-V2 Sampler, or ComfyUI's own loader with SamplerARVideo."
        )
    return executor(*args, **kwargs)


def is_causal(patcher: comfy.model_patcher.ModelPatcher) -> bool:
    """Whether a MODEL is of blocks of frames that see themselves and those before them."""
    return bool(patcher.model_options["transformer_options"].get(VARIANT_KEY) == CAUSAL)


def load_patcher(*args: Any, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """`load_model` without its summary, for the host to build the patcher again."""
    return load_model(*args, disable_dynamic=disable_dynamic)[0]
