"""One transformer of random weights, made on the card and shared: ours, ComfyUI's, the reference's.

Ours twice: in plain PyTorch, and as our loader gives it to ComfyUI.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import rivals
import torch
from torch import Tensor, nn

from skyreels_model.config import ModelConfig
from skyreels_model.model import SkyReelsModel
from skyreels_model.model.memory import EAGER, Execution
from toy.random_weights import PUBLISHED

from . import comfyui

CONFIGS = {"1.3B": PUBLISHED["DF-1.3B-540P"], "14B": PUBLISHED["DF-14B-540P"]}
State = dict[str, Tensor]


def config_of(model: str, rehearse: bool) -> ModelConfig:
    """A published model's sizes; in a rehearsal, small ones of the same kind."""
    config = CONFIGS[model]
    if not rehearse:
        return config
    return dataclasses.replace(config, dim=256, ffn_dim=512, num_heads=2, num_layers=2)


def random_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> State:
    """Weights under their original names, near what training starts from, all exact in `dtype`."""
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for key, like in SkyReelsModel(config, dtype=dtype, device="meta").state_dict().items():
        scale = config.dim**-0.5 if "modulation" in key else 0.02
        drawn = torch.empty(like.shape, dtype=dtype, device=device)
        drawn.normal_(std=scale, generator=generator)
        if ".norm" in key and key.endswith(".weight"):
            drawn += 1
        state[key.replace(".modulation.weight", ".modulation")] = drawn.to(like.dtype)
    return state


def ours(config: ModelConfig, state: State, dtype: torch.dtype) -> SkyReelsModel:
    """The public transformer."""
    model = SkyReelsModel(config, dtype=dtype, device="meta").requires_grad_(False)
    model.load_state_dict(state, assign=True)
    return model


def in_comfyui(
    config: ModelConfig, state: State, dtype: torch.dtype, attention: str = "auto"
) -> nn.Module:
    """The transformer inside of our loader's MODEL, with the host's layers."""
    import comfy.ops

    made = comfyui.ours("nodes.host.sockets.transformer").HostDiT
    layers = comfy.ops.disable_weight_init
    find = comfyui.ours("nodes.host.sockets.attention").find_attention
    attend = find(attention, dtype, config.head_dim)
    model = made(config, attend, operations=layers, dtype=dtype, device="meta")
    model.requires_grad_(False).load_state_dict(state, assign=True)
    return model


def execution_of(model: nn.Module) -> Execution:
    """How a forward of it is run, as far as its memory depends on that."""
    attend = getattr(model, "attention", None)
    if attend is None:
        return EAGER
    return Execution(attention=comfyui.ours("nodes.host.sockets.memory").kind_of(attend))


def attentions() -> list[str]:
    """The names that our loader offers and this machine has, for bf16."""
    usable = comfyui.ours("nodes.host.sockets.attention").usable
    return list(usable(torch.bfloat16, 128))


def core(config: ModelConfig, state: State, dtype: torch.dtype) -> nn.Module:
    """ComfyUI's own Wan, which has no fps embedding."""
    import comfy.ldm.wan.model
    import comfy.ops

    model = comfy.ldm.wan.model.WanModel(
        dim=config.dim,
        ffn_dim=config.ffn_dim,
        num_heads=config.num_heads,
        num_layers=config.num_layers,
        operations=comfy.ops.disable_weight_init,
        dtype=dtype,
        device="meta",
    )
    wanted = model.state_dict()
    cast = {k: v.to(wanted[k].dtype) for k, v in state.items() if not k.startswith("fps_")}
    model.requires_grad_(False).load_state_dict(cast, assign=True)
    return model


def reference(
    config: ModelConfig, state: State, dtype: torch.dtype, folder: pathlib.Path | None
) -> nn.Module:
    """The reference's, all in one dtype; its attention replaced where flash attention is absent.

    Raises ValueError without its source tree.
    """
    cast = {k: v.to(dtype) for k, v in state.items()}
    model = rivals.reference_model(config, cast, folder)
    if state["head.modulation"].device.type == "cpu":
        # For a card it compiles small functions, which takes a processor half a minute.
        model.forward = torch.compiler.set_stance("force_eager")(model.forward)
    if config.fps_embedding:
        model.register_forward_pre_hook(_with_fps, with_kwargs=True)
    return model


def _with_fps(_model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "fps": [1]}


@contextlib.contextmanager
def one_block(model: nn.Module) -> Iterator[None]:
    """Within it the model has its first block alone: a warm-up at full size."""
    blocks = model.blocks
    model.blocks = blocks[:1]
    try:
        yield
    finally:
        model.blocks = blocks


def inputs(
    config: ModelConfig, size: tuple[int, int, int], batch: int, dtype: torch.dtype, device: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (B, C, F, H, W), timesteps (B, F) of an asynchronous row, texts (B, 512, D)."""
    generator = torch.Generator(device).manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, device=device, generator=generator)

    timesteps = torch.linspace(999, 100, size[0], device=device).expand(batch, -1)
    return drawn(batch, config.in_dim, *size), timesteps, drawn(batch, 512, config.text_dim)


def operations(
    config: ModelConfig, tokens: int, words: int = 512, seen: int | None = None
) -> dict[str, float]:
    """Floating-point operations of the blocks of a forward: in products, and in attention.

    seen: how many tokens are seen by those that are computed, if others are.
    """
    dim, layers = config.dim, config.num_layers
    of_tokens = 2.0 * tokens * (6 * dim * dim + 2 * dim * config.ffn_dim)
    of_words = 2.0 * words * 2 * dim * dim if tokens else 0.0
    attention = 4.0 * tokens * ((seen or tokens) + words) * dim
    return {"products": layers * (of_tokens + of_words), "attention": layers * attention}
