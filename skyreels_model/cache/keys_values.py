"""Keys and values of frames that change no more, kept layer by layer: block-causal films.

Where a block of frames sees itself and those before it alone, a frame that is done is for all later
ones a constant: its keys and values in every layer. They are computed once, and a model call costs
the blocks at work, however many are done. Frames that wait are seen by none and are left out. The
film is that of the dense mask (`causal_block_size`).

No published SkyReels-V2 checkpoint was trained for it. FlowCache (arXiv 2602.10825) runs DF-1.3B
so, mixed with a cache of blocks, at 0.7 less VBench.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..attention import Attend
from ..model.layers import BlockInputs
from ..model.network import RunBlock, SkyReelsModel, run_directly
from ..model.positions import Positions

if TYPE_CHECKING:
    from ..rollout.film import Film


@dataclass
class KeysValues:
    """What the layers know of the first frames of a window, for one batch of prompts.

    frames: how many latent frames that is. layers: of each layer keys and values (B, L, D), L the
    tokens of those frames, keys normed and turned to their places.
    """

    frames: int = 0
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def cut(self, frames: int) -> None:
        """Forget all but the first frames."""
        if frames < self.frames:
            kept = [
                [t[:, : t.shape[1] * frames // self.frames] for t in two] for two in self.layers
            ]
            self.frames, self.layers = frames, [(k, v) for k, v in kept]

    def forward(
        self,
        model: SkyReelsModel,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        block_size: int,
        keep: int = 0,
        run_block: RunBlock = run_directly,
        **given: Any,
    ) -> Tensor:
        """The model's velocity of the frames after those that are kept, (B, C, F, H, W).

        x (B, C, F, H, W), timestep (B, F): of these frames, in blocks of `block_size` from the
        first on, the last of them perhaps shorter. keep: how many of them, from the first on, are
        kept from now on. The rest as in the model's own call.
        """
        _, patch_h, patch_w = model.config.patch_size
        tokens = (x.shape[3] // patch_h) * (x.shape[4] // patch_w)  # of a frame
        found: list[tuple[Tensor, Tensor]] = []

        def run(index: int, block: nn.Module, stream: Tensor, inputs: BlockInputs) -> Tensor:
            before = self.layers[index] if self.layers else None
            attend = _attend_after(
                before, inputs.attend_self, block_size * tokens, keep * tokens, found
            )
            return run_block(index, block, stream, replace(inputs, attend_self=attend))

        places = Positions(shift=(float(self.frames), 0.0, 0.0))
        out: Tensor = model(x, timestep, context, run_block=run, positions=places, **given)
        if keep:
            self.frames, self.layers = self.frames + keep, found
        return out


def _attend_after(
    before: tuple[Tensor, Tensor] | None,
    attend: Attend,
    block: int,
    keep: int,
    found: list[tuple[Tensor, Tensor]],
) -> Attend:
    """Attention in which each block of so many tokens sees those `before`, and itself.

    What is kept of them, and of the first `keep` tokens, goes to the end of `found`.
    """

    def attend_blocks(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        kept = 0
        if before is not None:
            kept = before[0].shape[1]
            k, v = torch.cat([before[0], k], dim=1), torch.cat([before[1], v], dim=1)
        parts = []
        for start in range(0, q.shape[1], block):
            seen = kept + min(start + block, q.shape[1])
            parts.append(attend(q[:, start : start + block], k[:, :seen], v[:, :seen], heads))
        if keep:
            # Copies, or all of the row's keys would be kept with them.
            found.append((k[:, : kept + keep].clone(), v[:, : kept + keep].clone()))
        return torch.cat(parts, dim=1)

    return attend_blocks


# ask(kept, x, t, keep) -> the guided velocity, by `KeysValues.forward` with what is kept.
Ask = Callable[[KeysValues, Tensor, Tensor, int], Tensor]


class CausalVelocity:
    """velocity(x, t) of a film's windows in which each block sees itself and those before it.

    The film's plan has the blocks. Noise over given frames (`prefix_noise`) is that of the row in
    which they are first seen.
    """

    def __init__(self, film: Film, ask: Ask) -> None:
        self.film, self.ask = film, ask
        self.kept, self.window = KeysValues(), -1

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, C, F, h, w) at timesteps (B, F) -> (B, C, F, h, w), 0 for frames that rest."""
        film, size = self.film, self.film.plan.block_size
        assert film.levels is not None
        if film.window != self.window:
            self.kept, self.window = KeysValues(), film.window
        at_work = film.levels.moves.nonzero()
        # Whole blocks, and up to the last that moves.
        first = int(at_work[0]) // size * size
        stop = min((int(at_work[-1]) // size + 1) * size, x.shape[2])
        self.kept.cut(first)  # a picture on the way is regenerated
        begin = self.kept.frames
        v = torch.zeros_like(x)
        seen = slice(begin, stop)
        v[:, :, seen] = self.ask(self.kept, x[:, :, seen], t[:, seen], first - begin)
        return v
