"""TeaCache as it was published: a forward leaves its blocks out while the time has hardly moved.

How far the time's embedding has moved since the last forward tells, by a polynomial that was fitted
to each model, how far the blocks' result has. While the sum of that stays below a threshold, what
the blocks added to the stream last time is added again.

Two defects of the authors' code are not here. Each prompt has a state of its own, by a key and not
by whether a call's number is even. And the first and last steps, which are always computed, are
told by the noise level, not by a count of calls, which came out wrong by the number of prompts.
Frames that rest do not thin out how far the others have moved.

Source: ali-vilab/TeaCache, TeaCache4Wan2.1, whose numbers SkyworkAI/SkyReels-V2 uses for its models
(`skyreels_v2_infer/modules/transformer.py`). They were fitted to Wan 2.1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.config import ModelConfig
from ..model.layers import BlockInputs
from ..rules import refusal, require_number

MOST_THRESHOLD = 3.0
PIXELS_540P, PIXELS_720P = 544 * 960, 720 * 1280


@dataclass(frozen=True)
class Rule:
    """How far a model's blocks move, by how far its time does.

    model: what it was fitted to. coefficients: of the polynomial, highest power first. projected:
    it is of the projected time, as the blocks see it, and not of the time as the head does. first,
    last: how many steps are always computed at the beginning and at the end.
    """

    model: str
    coefficients: tuple[float, ...]
    projected: bool
    first: int
    last: int

    def estimate(self, change: float) -> float:
        """How far the blocks' result has moved, relatively, by how far the time has."""
        total = 0.0
        for coefficient in self.coefficients:
            total = total * change + coefficient
        return total


# By model: coefficients for the time as the head sees it, and as the blocks see it.
COEFFICIENTS = {
    "T2V 1.3B": (
        (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
        (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664),
    ),
    "T2V 14B": (
        (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525),
    ),
    "I2V 540P": (
        (-302.331670, 223.948934, -52.5463970, 5.87348440, -0.201973289),
        (257151.496, -35422.9917, 1402.86849, -13.5890334, 0.132517977),
    ),
    "I2V 720P": (
        (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        (8107.05460, 2133.93892, -372.934672, 16.6203073, -0.0417769401),
    ),
}
# Steps that are always computed, at the beginning and at the end: the authors' numbers for each.
ALWAYS = ((1, 1), (5, 0))


def find_rule(config: ModelConfig, pixels: int, projected: bool = True) -> Rule:
    """The published rule for a model that makes pictures of so many pixels.

    The size of the pictures decides between the two rules for image-to-video models, whose tensors
    do not tell what they were trained for. projected: as in `Rule`; its authors call it ret_steps
    and find it faster and better. Raises ValueError for a model that no rule was fitted to.
    """
    size = {(1536, 30): "1.3B", (5120, 40): "14B"}.get((config.dim, config.num_layers))
    if size is None:
        given = f"{config.num_layers} blocks of width {config.dim}"
        rule = "one that TeaCache was fitted to: 1.3B (30 of 1536) or 14B (40 of 5120)"
        raise refusal("the model", given, rule)
    name = f"T2V {size}"
    if config.model_type == "i2v":
        name = "I2V 720P" if 2 * pixels > PIXELS_540P + PIXELS_720P else "I2V 540P"
    return Rule(name, COEFFICIENTS[name][projected], projected, *ALWAYS[projected])


def always_computes(level: float, levels: Sequence[float], first: int, last: int) -> bool:
    """Whether a noise level belongs to the first or last steps.

    levels: those of a run, falling, one more than its steps. A solver may ask more than once a
    step, and between two levels; so it is not counted how often it has.
    """
    steps = len(levels) - 1
    if first + last >= steps:
        return True
    begins = first and level > (levels[first - 1] + levels[first]) / 2
    return bool(begins or (last and level < (levels[steps - last - 1] + levels[steps - last]) / 2))


@dataclass
class State:
    """What is known of one prompt's last forward.

    time: its embedding, (n, T, …). residual: what the blocks last added to the stream, (n, L, D).
    distance: how far their result has moved since, as far as the rule knows.
    """

    time: Tensor
    residual: Tensor
    distance: float = 0.0

    def fits(self, time: Tensor, tokens: Tensor) -> bool:
        same = self.time.shape == time.shape and self.residual.shape == tokens.shape
        return same and (self.residual.device, self.residual.dtype) == (tokens.device, tokens.dtype)


class TeaCache:
    """The cache of one sampling run, which no other run fits. For forwards without gradients.

    computed, skipped: how many forwards ran the blocks, and how many did not.
    """

    def __init__(self, rule: Rule, threshold: float) -> None:
        require_number("threshold", threshold, 0, MOST_THRESHOLD)
        self.rule, self.threshold = rule, threshold
        self.computed = self.skipped = 0
        self.states: dict[Hashable, State] = {}

    def bind(self, keys: Sequence[Hashable], forced: bool = False) -> BoundCache:
        """What one forward is given as `cache`.

        keys: of the prompts in its batch, which they share equally, in their order. forced: the
        blocks are run in any case.
        """
        return BoundCache(self, keys, forced)

    def advance(self, key: Hashable, time: Tensor, tokens: Tensor, forced: bool) -> bool:
        """Whether a prompt's blocks are where they were, now that its time has moved to this."""
        state = self.states.get(key)
        # At 0 nothing is left out, though polynomials go below.
        if forced or self.threshold == 0 or state is None or not state.fits(time, tokens):
            return False
        state.distance += self.rule.estimate(measure_change(time, state.time))
        state.time = time
        return state.distance < self.threshold


class BoundCache:
    """A `BlockCache` for one forward with these prompts in its batch."""

    def __init__(self, cache: TeaCache, keys: Sequence[Hashable], forced: bool) -> None:
        self.cache, self.keys, self.forced = cache, keys, forced
        self.begun: list[State] = []

    def recall(self, x: Tensor, inputs: BlockInputs) -> Tensor | None:
        """The stream with what the blocks added last; None where one of the prompts has moved."""
        cache, count = self.cache, len(self.keys)
        seen = inputs.modulation if cache.rule.projected else inputs.time
        assert seen is not None
        given = list(zip(self.keys, seen.chunk(count), x.chunk(count), strict=True))
        near = [cache.advance(*each, self.forced) for each in given]
        if not all(near):
            self.begun = [self._begin(*each) for each in given]
            return None
        cache.skipped += 1
        known = x if inputs.overwrite else x.clone()
        for key, part in zip(self.keys, known.chunk(count), strict=True):
            part.add_(cache.states[key].residual)
        return known

    def _begin(self, key: Hashable, time: Tensor, tokens: Tensor) -> State:
        """A prompt's state while its blocks run: the stream before them in the residual's place.

        The cache does not have it until they are done, so that a forward that fails leaves none.
        """
        old = self.cache.states.pop(key, None)
        if old is None or not old.fits(time, tokens):
            return State(time, tokens.clone())
        return State(time, old.residual.copy_(tokens))

    def remember(self, x: Tensor) -> None:
        self.cache.computed += 1
        parts = x.chunk(len(self.keys))
        for key, state, part in zip(self.keys, self.begun, parts, strict=True):
            torch.sub(part, state.residual, out=state.residual)
            self.cache.states[key] = state


def measure_change(time: Tensor, before: Tensor) -> float:
    """How far an embedding (n, T, …) has moved, relatively, in the frame that moved furthest."""
    moved, size = (t.abs().flatten(2).mean(dim=2) for t in (time - before, before))  # (n, T)
    return float((moved / size).max())
