"""What other nodes put into the options, done to our blocks as to those of the host's Wan.

Its keys are the host's: `patches_replace`, and `patches` by `attn1_patch`, `attn2_patch` and
`double_block`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....skyreels_model.attention import Attend
from ....skyreels_model.model.layers import BlockInputs
from ....skyreels_model.model.network import RunBlock, run_directly
from ....skyreels_model.model.positions import Positions

Options = dict[str, Any]
Patches = Sequence[Callable[[dict[str, Any]], Any]]


def read_positions(options: Options) -> Positions:
    """Where the tokens lie, by the host's `rope_options`."""
    asked = options.get("rope_options") or {}
    scale, shift = (
        tuple(float(asked.get(f"{what}_{axis}", usual)) for axis in "tyx")
        for what, usual in (("scale", 1.0), ("shift", 0.0))
    )
    return Positions(scale, shift)


def attend_with(attention: Any, options: Options, **how: Any) -> Attend:
    """An attention of the host's in our protocol, with the options that it looks into."""

    def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        out: Tensor = attention(q, k, v, heads=heads, transformer_options=options, **how)
        return out

    return attend


def attend_image_with(attention: Any, options: Options) -> Attend:
    """The same for the few tokens of an image, in 16 bits, as the host's Wan (0.31) asks for.

    SageAttention can make NaN of them. Functions of the host that know no other way ignore it.
    """
    return attend_with(attention, options, low_precision_attention=False)


class BlockHooks:
    """Runs a block through the replacements and patches of other nodes.

    options: the host's `transformer_options` of this forward. attention: the host's function.
    latents: what the transformer is given, (B, C, F, H, W). total: the number of blocks. run: calls
    each.
    """

    def __init__(
        self,
        options: Options,
        attention: Any,
        latents: Tensor,
        total: int,
        run: RunBlock = run_directly,
    ) -> None:
        self.options, self.attention, self.latents, self.run = options, attention, latents, run
        self.replacements = options.get("patches_replace", {}).get("dit", {})
        self.after_block: Patches = options.get("patches", {}).get("double_block", ())
        options["total_blocks"], options["block_type"] = total, "double"

    def __call__(self, index: int, block: nn.Module, x: Tensor, inputs: BlockInputs) -> Tensor:
        self.options["block_index"] = index
        x = self._run(index, block, x, inputs)
        if not self.after_block:
            return x

        def patch(x: Tensor) -> Tensor:
            given = {"x": self.latents, "vec": inputs.time, "block_index": index, "img_offset": 0}
            given["transformer_options"] = self.options
            for call in self.after_block:
                x = call({"img": x, **given})["img"]
            return x

        return change(x, inputs.dtype, patch)

    def _run(self, index: int, block: nn.Module, x: Tensor, inputs: BlockInputs) -> Tensor:
        if not self.replacements:
            return self.run(index, block, x, self._follow(inputs, self.options))

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
            image = args["img"].clone()
            given = self._follow(given, args["transformer_options"])
            return {"img": self.run(index, block, image, given)}

        args = {"img": x, "txt": inputs.context, "vec": inputs.modulation, "pe": inputs.rope}
        args["transformer_options"] = self.options
        replace = self.replacements.get(("double_block", index))
        if replace is None:
            return original(args)["img"]
        return replace(args, {"original_block": original})["img"]

    def _follow(self, inputs: BlockInputs, options: Options) -> BlockInputs:
        """A block's inputs with the attention patches of these options."""
        patches = options.get("patches", {})
        on_self, on_stream = (patches.get(name, ()) for name in ("attn1_patch", "attn2_patch"))
        if options is self.options and not on_self and not on_stream:
            return inputs
        attend = attend_with(self.attention, options)
        dtype = inputs.dtype

        def patched(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            out = attend(q, k, v, heads)
            q, k = q.unflatten(2, (heads, -1)), k.unflatten(2, (heads, -1))  # (B, L, heads, d)
            for call in on_self:
                out = call({"x": out, "q": q, "k": k, "transformer_options": options})
            return out

        def patch(x: Tensor) -> Tensor:
            for call in on_stream:
                x = call({"x": x, "transformer_options": options})
            return x

        return dataclasses.replace(
            inputs,
            attend_self=patched if on_self else attend,
            attend_context=attend,
            attend_image=attend_image_with(self.attention, options),
            after_context=(lambda x: change(x, dtype, patch)) if on_stream else None,
        )


def change(x: Tensor, dtype: torch.dtype, patch: Callable[[Tensor], Tensor]) -> Tensor:
    """x as `patch` makes it, which sees it in `dtype`, that of products, as in the host's Wan.

    It sees a copy, and its result is copied: it may keep both, and blocks write over the stream.
    """
    made = patch(x.to(dtype, copy=True))
    if x.dtype == dtype:
        return made.clone()
    # What the stream is finer than `dtype` stays; a patch may have written over what it saw.
    return x + (made - x.to(dtype))
