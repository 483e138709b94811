"""By how much each dimension of a forward is divided, so that the parts are as many as GPUs.

Three dimensions: prompts (a batch with the positive and the negative one), heads (Ulysses: each GPU
attends with some heads to all tokens) and a ring (keys and values of some tokens go round). What is
neither heads nor prompts goes into the ring, which takes any number, so any number of GPUs fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..rules import refusal, require_whole

MOST_GPUS = 64
AUTOMATIC = 0


@dataclass(frozen=True)
class Degrees:
    """Parts along each dimension. Ranks count heads fastest, then the ring, then prompts."""

    prompts: int = 1
    heads: int = 1
    ring: int = 1

    @property
    def sequence(self) -> int:
        """How many ranks share the tokens of one prompt."""
        return self.heads * self.ring

    @property
    def world(self) -> int:
        """How many ranks there are."""
        return self.prompts * self.sequence

    def place(self, rank: int) -> tuple[int, int, int]:
        """Where a rank stands along (prompts, ring, heads)."""
        rest, head = divmod(rank, self.heads)
        return rest // self.ring, rest % self.ring, head


def choose_degrees(
    world: int, heads: int, prompts: int = AUTOMATIC, ulysses: int = AUTOMATIC
) -> Degrees:
    """The degrees for so many GPUs and a model with so many heads.

    prompts, ulysses: parts along prompts and heads. AUTOMATIC (0): two prompts apart where the
    number of GPUs is even, which sends least, then as many parts of the heads as fit. Raises
    ValueError, with the nearest legal number, for what does not divide.
    """
    require_whole("the number of GPUs", world, 1, MOST_GPUS)
    if prompts == AUTOMATIC:
        prompts = 2 if world % 2 == 0 else 1
    _require_divisor("prompts apart", prompts, world, f"the number of GPUs ({world})")
    each = world // prompts
    common = math.gcd(each, heads)
    if ulysses == AUTOMATIC:
        ulysses = common
    what = f"the GPUs of a prompt ({each}) and of the model's heads ({heads})"
    _require_divisor("ulysses", ulysses, common, what)
    return Degrees(prompts, ulysses, each // ulysses)


def _require_divisor(name: str, value: int, whole: int, what: str) -> None:
    divisors = [n for n in range(1, whole + 1) if whole % n == 0]
    if value not in divisors:
        nearest = min(divisors, key=lambda n: abs(n - value))
        raise refusal(name, value, f"a divisor of {what}", nearest)
