"""Where a device has no memory for all prompts of a row at once, they are computed one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management
from torch import Tensor

from ..sockets.memory import explain_lack, lacks_memory

APART = (
    "The device has no memory for all prompts at once: from here on they are computed one by one, "
    "which takes a little longer"
)
WITHOUT_ROOM = (
    "prompts were computed one by one. Choose a smaller window or picture in SkyReels-V2 Schedule, "
    "weights in fp8 in the model's loader, or close what else uses the memory"
)


class PromptsApart:
    """The host's model calls for a row's prompts, from the first that fails on one by one.

    A wrapper of the host's `calc_cond_batch`; say: tells people something.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.apart = say, False

    def __call__(
        self,
        executor: Callable[..., list[Tensor]],
        model: Any,
        conds: list[list[dict[str, Any]] | None],
        *args: Any,
    ) -> list[Tensor]:
        if not self.apart and sum(cond is not None for cond in conds) > 1:
            try:
                return executor(model, conds, *args)
            except Exception as error:
                if not lacks_memory(error):
                    raise
            # Outside of the except block, which would keep the failed call's tensors alive.
            self.apart = True
            self.say(APART)
            comfy.model_management.soft_empty_cache()
        with explain_lack("sampling", WITHOUT_ROOM):
            return [answer for cond in conds for answer in executor(model, [cond], *args)]
