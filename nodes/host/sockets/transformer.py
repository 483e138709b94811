"""Our transformer with the host's call: arguments, wrappers, hooks of blocks, attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import comfy.ldm.common_dit
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from torch import Tensor, nn

from ....skyreels_model.model import layers
from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.model.network import SkyReelsModel
from .no_bypass import NoBypass
from .rotary import rotation

ATTENTION = {"auto": optimized_attention, "pytorch": attention_pytorch}


class HostModulation(NoBypass, layers.Modulation, comfy.ops.CastWeightBiasOp):
    """A modulation whose weight the host casts, moves and patches like any layer's.

    The host's LoRA code silently skips raw parameters beside child modules, hence the leaf.
    """

    comfy_cast_weights = True
    bias = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight_function: list[Any] = []
        self.bias_function: list[Any] = []

    def forward(self, e: Tensor) -> Tensor:
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self, dtype=e.dtype, device=e.device, bias_dtype=e.dtype, offloadable=True
        )
        out = weight[:, None] + e
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out


class HostDiT(SkyReelsModel):
    """The transformer with the host's call: positions of arguments, wrappers and block hooks."""

    def __init__(
        self,
        skyreels: ModelConfig,
        attention: str,
        operations: Any,
        dtype: torch.dtype,
        device: torch.device | str | None,
        **_detected: Any,
    ) -> None:
        embedding = type("HostEmbedding", (NoBypass, operations.Embedding), {})
        made = {"Modulation": HostModulation, "Embedding": embedding}
        named = type("Operations", (operations,), made)
        super().__init__(skyreels, named, dtype, device)
        self.attention = ATTENTION[attention]

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options if transformer_options is not None else {}
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._forward, self, wrappers
        )
        return executor.execute(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None,
        time_dim_concat: Tensor | None,
        transformer_options: dict[str, Any],
        fps: Tensor | None = None,
        **_kwargs: Any,
    ) -> Tensor:
        frames, h, w = x.shape[2:]
        x = comfy.ldm.common_dit.pad_to_patch_size(x, self.config.patch_size)

        def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            return self.attention(q, k, v, heads=heads, transformer_options=transformer_options)

        hooks = BlockHooks(transformer_options, len(self.blocks))
        out = super().forward(
            x,
            timestep,
            context,
            # Core's conditioning nodes attach it for every model.
            clip_fea=clip_fea if self.config.model_type == "i2v" else None,
            fps=fps,
            attend=attend,
            run_block=hooks,
            rotate=rotation(x.device),
        )
        return out[:, :, :frames, :h, :w]


class BlockHooks:
    """Runs a block through the replacements that other nodes have put into the options."""

    def __init__(self, options: dict[str, Any], total: int) -> None:
        self.options = options
        self.replacements = options.get("patches_replace", {}).get("dit", {})
        options["total_blocks"], options["block_type"] = total, "double"

    def __call__(
        self, index: int, block: nn.Module, x: Tensor, inputs: layers.BlockInputs
    ) -> Tensor:
        self.options["block_index"] = index
        if not self.replacements:
            return block(x, inputs)

        def original(args: dict[str, Any]) -> dict[str, Tensor]:
            same = args["txt"] is inputs.context
            given = dataclasses.replace(
                inputs,
                context=args["txt"],
                modulation=args["vec"],
                rope=args["pe"],
                distinct_rows=inputs.distinct_rows if same else None,
            )
            # A copy, since a block writes over its input, and other nodes may keep any block's.
            return {"img": block(args["img"].clone(), given)}

        args = {"img": x, "txt": inputs.context, "vec": inputs.modulation, "pe": inputs.rope}
        args["transformer_options"] = self.options
        replace = self.replacements.get(("double_block", index))
        if replace is None:
            return original(args)["img"]
        return replace(args, {"original_block": original})["img"]
