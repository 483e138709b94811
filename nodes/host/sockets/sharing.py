"""Where our transformer's forward may be shared with other processes: what travels on the MODEL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ....skyreels_model.model.network import RunBlock, SkyReelsModel

SHARED = "skyreels_v2_multi_gpu"  # in the host's transformer options


@dataclass(frozen=True)
class Call:
    """A forward that is about to begin.

    given: the tensors of the call by their names in it. grid: tokens along frames, height, width.
    run: how one process calls each block. cached: whether a cache may leave the blocks out.
    """

    transformer: SkyReelsModel
    given: Mapping[str, Tensor]
    grid: tuple[int, int, int]
    options: dict[str, Any]
    run: RunBlock
    cached: bool


class Sharing(Protocol):
    """What shares a MODEL's forwards (`multi_gpu`)."""

    def prepare(self, patcher: Any, conds: Mapping[str, Any]) -> None:
        """Before a sampling run: others have what this patcher has, or ValueError."""

    def share(self, call: Call) -> AbstractContextManager[RunBlock]:
        """Inside, the blocks of a forward are to be called by what it gives."""

    def memory(self, needed: float, shape: Any) -> float:
        """Bytes that this process needs, of those that it would need alone."""


def find_sharing(options: Mapping[str, Any]) -> Sharing | None:
    """What a model's transformer options carry, if they do."""
    found: Sharing | None = options.get(SHARED)
    return found


def nobody() -> Sharing | None:
    """In place of a reference to what shares a model's forwards, where nothing does."""
    return None
