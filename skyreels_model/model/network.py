"""The SkyReels-V2 diffusion transformer: a velocity per latent frame, each at its own timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Attend, block_causal, sdpa
from ..operations import Operations
from ..rules import refusal
from .config import CLIP_DIM, ModelConfig
from .layers import (
    Block,
    BlockInputs,
    Factory,
    Head,
    ImageEmbedding,
    count_distinct,
    repeat_last,
)
from .positions import AT_INDICES, Positions, Rotate, apply_rope, rope_table, sinusoid

DEFAULT_FPS = 24

# run_block(index, block, x, inputs) -> x: how each block is called, by default directly.
RunBlock = Callable[[int, nn.Module, Tensor, BlockInputs], Tensor]


def run_directly(_index: int, block: nn.Module, x: Tensor, inputs: BlockInputs) -> Tensor:
    out: Tensor = block(x, inputs)
    return out


class BlockCache(Protocol):
    """What may know, in a forward, what its blocks would make of the stream (`cache.published`)."""

    def recall(self, x: Tensor, inputs: BlockInputs) -> Tensor | None:
        """It for the stream x (B, L, D); None where they have to be run."""

    def remember(self, x: Tensor) -> None:
        """What they have made of what `recall` did not know."""


class SkyReelsModel(nn.Module):
    """Wan 2.1 transformer with per-frame timesteps and, in DF-1.3B, an fps embedding.

    Parameters carry the original checkpoint's names; only `X.modulation` is held as
    `X.modulation.weight` (both load). The time and fps embeddings and the head are held and
    computed in float32, as in the reference, and so are norms and the stream of tokens; products
    and attention in the dtype of `x`.
    Source: SkyworkAI/SkyReels-V2, `skyreels_v2_infer/modules/transformer.py`.
    """

    def __init__(
        self,
        config: ModelConfig,
        operations: Operations = nn,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        dim, make, fp32 = config.dim, Factory(operations, dtype, device), torch.float32
        image = config.model_type == "i2v"
        self.patch_embedding = make.conv3d(config.in_dim, dim, config.patch_size)
        self.text_embedding = nn.Sequential(
            make.fine_linear(config.text_dim, dim),
            nn.GELU(approximate="tanh"),
            make.fine_linear(dim, dim),
        )
        self.time_embedding = nn.Sequential(
            make.linear(config.freq_dim, dim, fp32), nn.SiLU(), make.linear(dim, dim, fp32)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), make.linear(dim, 6 * dim, fp32))
        if config.fps_embedding:
            self.fps_embedding = make.embedding(2, dim, fp32)
            self.fps_projection = nn.Sequential(
                make.linear(dim, dim, fp32), nn.SiLU(), make.linear(dim, 6 * dim, fp32)
            )
        self.blocks = nn.ModuleList(
            Block(dim, config.ffn_dim, config.num_heads, config.eps, image, make)
            for _ in range(config.num_layers)
        )
        patch_volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = Head(dim, config.out_dim * patch_volume, config.eps, make)
        if image:
            self.img_emb = ImageEmbedding(CLIP_DIM, dim, make)
        self.register_load_state_dict_pre_hook(_accept_original_names)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        fps: Tensor | None = None,
        causal_block_size: int | None = None,
        attend: Attend = sdpa,
        run_block: RunBlock = run_directly,
        rotate: Rotate = apply_rope,
        positions: Positions = AT_INDICES,
        cache: BlockCache | None = None,
        attend_image: Attend | None = None,
    ) -> Tensor:
        """Velocity (noise - data) of noised latents.

        x: (B, in_dim, F, H, W) normalised latents, H and W multiples of 2; for I2V the 16 of the
        sample are followed by the 20 conditioning channels.
        timestep: (B,) or (B, F) on 0..1000. context: (B, N, text_dim), 512 rows as in training,
        zeros after the text; none are masked.
        clip_fea: (B, 257, 1280), I2V only; without it such a model sees the text alone.
        fps: (B,) frames per second; None means 24; ignored by models without an fps embedding.
        causal_block_size: frames per block of block-causal attention; None is full attention.
        attend, run_block, rotate: attention back end, block call (hooks of a host), rotation.
        positions: where the tokens lie, by default at their indices. cache: may skip the blocks.
        attend_image: attention to the image, where that is another one.
        Returns (B, out_dim, F, H, W), float32 or what is wider. Raises ValueError on unfit shapes.
        """
        self._check(x, timestep, context, clip_fea, causal_block_size)
        e, modulation = self.embed_time(timestep, fps)  # (B, T, D), (B, T, 6, D); T is F or 1
        distinct = count_distinct(context)
        context = self._embed_context(context, distinct, clip_fea)  # (B, image tokens + N, D)
        tokens = self.patch_embedding(x)  # (B, D, f, h, w)
        grid = tokens.shape[2:]
        # Contiguous, or every block would silently copy it, several times.
        stream = torch.promote_types(tokens.dtype, modulation.dtype)
        tokens = rearrange(tokens, "b d f h w -> b (f h w) d")
        tokens = tokens.to(stream, memory_format=torch.contiguous_format).contiguous()
        block = (causal_block_size or 0) * grid[1] * grid[2]
        inputs = BlockInputs(
            modulation=modulation,
            context=context,
            rope=rope_table(grid, self.config.head_dim, x.device, positions),
            image_tokens=0 if clip_fea is None else clip_fea.shape[1],
            attend_self=block_causal(attend, block) if block else attend,
            attend_context=attend,
            attend_image=attend_image,
            rotate=rotate,
            may_overwrite=not torch.is_grad_enabled(),
            distinct_rows=distinct,
            time=e,
        )
        known = cache.recall(tokens, inputs) if cache else None
        if known is None:
            for index, layers in enumerate(self.blocks):
                tokens = run_block(index, layers, tokens, inputs)
            if cache:
                cache.remember(tokens)
        return self._unpatchify(self.head(tokens if known is None else known, e), grid)

    def embed_time(self, timestep: Tensor, fps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compact time embedding, one row per distinct noise level.

        timestep (B,) or (B, F) -> e (B, T, D) and its projection (B, T, 6, D), float32, with
        T = 1 or F. The fps (B,) is added per sample, which is right for any batch (the reference
        mixes samples up when fps differ within a batch).
        """
        batch = timestep.shape[0]
        rows = sinusoid(timestep.flatten(), self.config.freq_dim)
        e = self.time_embedding(rows).unflatten(0, (batch, -1))
        projected = self.time_projection(e).unflatten(2, (6, self.config.dim))
        if self.config.fps_embedding:
            if fps is None:
                fps = torch.full((batch,), DEFAULT_FPS, device=timestep.device)
            # Trained with two rows: 16 fps, and everything else (24).
            index = (fps != 16).long().expand(batch)
            rate = self.fps_projection(self.fps_embedding(index).to(e))
            projected = projected + rate.unflatten(1, (1, 6, self.config.dim))
        return e, projected

    def _embed_context(self, text: Tensor, distinct: int, clip_fea: Tensor | None) -> Tensor:
        """What blocks see beside the tokens: the image's, if there is one, then the text's."""
        rows = text.shape[1]
        text = repeat_last(self.text_embedding(text[:, :distinct]), rows)  # (B, N, D)
        if clip_fea is None:
            return text
        return torch.cat([self.img_emb(clip_fea).to(text), text], dim=1)

    def _unpatchify(self, patches: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, L, pt*ph*pw*C), channel fastest -> (B, C, F, H, W)."""
        sizes = dict(zip("fhwpqr", (*grid, *self.config.patch_size), strict=True))
        to_latents = "b (f h w) (p q r c) -> b c (f p) (h q) (w r)"
        return rearrange(patches, to_latents, **sizes)

    def _check(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None,
        causal_block_size: int | None,
    ) -> None:
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.in_dim:
            raise refusal("the shape of x", tuple(x.shape), f"(B, {config.in_dim}, F, H, W)")
        for name, size, patch in zip("FHW", x.shape[2:], config.patch_size, strict=True):
            if size % patch:
                nearest = max(patch, size // patch * patch)
                raise refusal(f"{name} of x", size, f"a multiple of {patch}", nearest)
        frames = x.shape[2]
        if timestep.shape not in ((x.shape[0],), (x.shape[0], frames)):
            rule = f"({x.shape[0]},) or ({x.shape[0]}, {frames})"
            raise refusal("the shape of timestep", tuple(timestep.shape), rule)
        if context.ndim != 3 or context.shape[2] != config.text_dim:
            rule = f"(B, N, {config.text_dim}) (is this the text encoder that belongs to it?)"
            raise refusal("the shape of context", tuple(context.shape), rule)
        if clip_fea is not None and config.model_type != "i2v":
            raise ValueError(
                f"clip_fea is given; only I2V models take it, and this is a "
                f"{config.model_type} model"
            )
        if causal_block_size is not None and frames % causal_block_size:
            nearest = max(1, frames // causal_block_size) * causal_block_size
            rule = f"a multiple of causal_block_size ({causal_block_size})"
            raise refusal("the number of latent frames", frames, rule, nearest)


def _accept_original_names(
    _module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_rest: Any
) -> None:
    """Rename `X.modulation` of the original checkpoints to this model's `X.modulation.weight`."""
    for key in [k for k in state_dict if k.startswith(prefix) and k.endswith(".modulation")]:
        state_dict[key + ".weight"] = state_dict.pop(key)
