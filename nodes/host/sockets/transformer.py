"""Our transformer with the host's call: arguments, wrappers, hooks of blocks, attention."""

from __future__ import annotations

from collections.abc import Callable
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

from ....skyreels_model.model import layers
from ....skyreels_model.model.config import ModelConfig
from ....skyreels_model.model.network import SkyReelsModel
from ....skyreels_model.rules import refusal
from .hooks import BlockHooks, attend_image_with, attend_with, read_positions
from .kept import keep_frames
from .kernels import block_runner
from .no_bypass import NoBypass
from .rotary import rotation
from .sharing import Call, find_sharing
from .tea_cache import read_cache


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
        attention: Callable[..., Any],
        operations: Any,
        dtype: torch.dtype,
        device: torch.device | str | None,
        **_detected: Any,
    ) -> None:
        embedding = type("HostEmbedding", (NoBypass, operations.Embedding), {})
        made = {"Modulation": HostModulation, "Embedding": embedding}
        named = type("Operations", (operations,), made)
        super().__init__(skyreels, named, dtype, device)
        self.attention = attention

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
        patch = self.config.patch_size
        x = comfy.ldm.common_dit.pad_to_patch_size(x, patch)
        if time_dim_concat is not None:
            x = _append_frames(x, comfy.ldm.common_dit.pad_to_patch_size(time_dim_concat, patch))
            _check_one_timestep(timestep)
        grid = x.shape[2] // patch[0], x.shape[3] // patch[1], x.shape[4] // patch[2]
        given = {"x": x, "timestep": timestep, "context": context}
        if fps is not None:
            given["fps"] = fps
        # Core's conditioning nodes attach it for every model.
        if clip_fea is not None and self.config.model_type == "i2v":
            given["clip_fea"] = clip_fea
        how: dict[str, Any] = {
            "attend": attend_with(self.attention, transformer_options),
            "attend_image": attend_image_with(self.attention, transformer_options),
            "positions": read_positions(transformer_options),
            "rotate": rotation(x.device),
            "cache": read_cache(transformer_options),
        }
        runner = block_runner(x.device, x.dtype, self.config)
        hooks = BlockHooks(transformer_options, self.attention, x, len(self.blocks), runner)
        sharing, keep = find_sharing(transformer_options), keep_frames(transformer_options)
        whole = super().forward

        def call(**changed: Any) -> Tensor:
            options, calls = transformer_options, {**given, **how, "run_block": hooks, **changed}
            options["grid_sizes"] = torch.Size((calls["x"].shape[2] // patch[0], *grid[1:]))
            return whole(**calls)

        if keep is not None:
            out = keep(call, x, timestep, positions=how["positions"], run_block=hooks)
        elif sharing is None:
            out = call()
        else:
            cached = how["cache"] is not None
            transformer_options["grid_sizes"] = torch.Size(grid)
            with sharing.share(Call(self, given, grid, transformer_options, hooks, cached)) as run:
                out = super().forward(**given, **how, run_block=run)
        return out[:, :, :frames, :h, :w]


def _append_frames(x: Tensor, images: Tensor) -> Tensor:
    """Latents (B, C, F, H, W) and the subject images (B, C, n, H, W) of Phantom models after."""
    if images.shape[:2] != x.shape[:2] or images.shape[3:] != x.shape[3:]:
        batch, channels, _, height, width = x.shape
        rule = f"({batch}, {channels}, F, {height}, {width}), as the latents"
        raise refusal("the shape of time_dim_concat", tuple(images.shape), rule)
    return torch.cat([x, images], dim=2)


def _check_one_timestep(timestep: Tensor) -> None:
    if timestep.ndim > 1 and timestep.shape[1] > 1:
        raise ValueError(
            "the prompt carries subject images for Phantom models (time_dim_concat), which have no "
            "place where each frame has a noise level of its own; connect the prompt without them, "
            "or use KSampler"
        )
