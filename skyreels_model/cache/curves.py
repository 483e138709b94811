"""How a model's velocity changes along a frame's way from noise to picture, by noise level."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..rules import refusal

GRID = 1000  # noise levels are told apart as far as the network does
UNKNOWN = -1.0
FORMAT = "SkyReels-V2 TeaCache calibration 1"


@dataclass(frozen=True, eq=False)
class Curves:
    """Tables over the noise levels 0 to 1 in steps of 1 / GRID, `UNKNOWN` where nothing is.

    slopes: how far the velocity goes from an answer, as a share of it, for a distance of 1 in noise
    level. bends: how far it goes from the line through two answers, for a distance of 1 from the
    last, times the distance from the one before. jumps: how far it goes beside that when another
    frame has finished. Each (GRID + 1,), on the CPU, written in place.
    """

    slopes: Tensor
    bends: Tensor
    jumps: Tensor

    @classmethod
    def unknown(cls) -> Curves:
        return cls(*torch.full((3, GRID + 1), UNKNOWN))

    @property
    def empty(self) -> bool:
        """Whether there are no slopes or no bends, so that nothing can be expected."""
        return not len(_known(self.slopes)) or not len(_known(self.bends))

    def at(self, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Slopes, bends and jumps at the known levels nearest to these; infinite without any."""
        slopes, bends, jumps = (
            _look_up(table, levels.flatten()).view_as(levels)
            for table in (self.slopes, self.bends, self.jumps)
        )
        return slopes, bends, jumps

    def knows_bends(self, levels: Tensor) -> Tensor:
        """Whether a bend is known at these very levels."""
        return self.bends[_places(levels)] != UNKNOWN

    def note(
        self,
        levels: Tensor,
        last: Tensor,
        gaps: Tensor,
        misses: tuple[Tensor, Tensor],
        moved: Tensor,
        lines: Tensor,
    ) -> None:
        """Put down what an answer shows; all (F,). A known level gets the mean of both.

        last: where the last answer was. gaps: how far after the one before. misses: of the last
        answer, held, and of the line. moved: of which frames. lines: which have a line.
        """
        far, (held, line) = (levels - last).abs(), misses
        _put(self.slopes, levels[moved], (held / far)[moved])
        lines = lines & moved
        _put(self.bends, levels[lines], (line / (far * (far + gaps.abs())))[lines])

    def note_jump(self, levels: Tensor, last: Tensor, missed: Tensor, moved: Tensor) -> None:
        """Put down what an answer shows after another frame has finished; all (F,)."""
        slopes = _look_up(self.slopes, levels).nan_to_num(posinf=0.0)
        jumps = (missed - slopes * (levels - last).abs()).clamp(min=0)
        _put(self.jumps, levels[moved], jumps[moved])

    def write(self, path: Path, about: dict[str, Any]) -> None:
        """Write them down as JSON, with what a person should know about them."""
        tables = {
            name: {f"{i / GRID:g}": round(float(table[i]), 5) for i in _known(table).tolist()}
            for name, table in vars(self).items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **about, **tables}, indent=1), "utf-8")


def read_curves(path: Path) -> Curves:
    """What `Curves.write` has written. Raises ValueError for any other file."""
    try:
        told = json.loads(path.read_text("utf-8"))
        if told["format"] != FORMAT:
            raise refusal("its format", told["format"], f"{FORMAT!r}")
        found = Curves.unknown()
        for name in vars(found):
            # Files from before jumps were told apart have none.
            for level, value in (told.get(name, {}) if name == "jumps" else told[name]).items():
                _check(name, float(level), float(value))
                getattr(found, name)[round(float(level) * GRID)] = float(value)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{path.name} is no calibration of SkyReels-V2 TeaCache: {what}"
        ) from error
    if found.empty:
        raise ValueError(f"{path.name} is a calibration without numbers; make it again")
    return found


def _check(name: str, level: float, value: float) -> None:
    if not 0 <= level <= 1:
        raise refusal(f"a noise level of its {name}", level, "0 to 1")
    if not 0 <= value < math.inf:
        raise refusal(f"a number of its {name}", value, "0 or more, and finite")


def _known(table: Tensor) -> Tensor:
    return (table >= 0).nonzero()[:, 0]


def _places(levels: Tensor) -> Tensor:
    return (levels * GRID).round().long()


def _look_up(table: Tensor, levels: Tensor) -> Tensor:
    """What is known at the levels nearest to these, (N,); infinite where nothing is."""
    known = _known(table)
    if not len(known):
        return torch.full_like(levels, math.inf)
    nearest = (known - _places(levels)[:, None]).abs().argmin(dim=1)
    return table[known[nearest]]


def _put(table: Tensor, levels: Tensor, values: Tensor) -> None:
    """In order, for frames of a block are at the same level."""
    for place, value in zip(_places(levels).tolist(), values.tolist(), strict=True):
        old = float(table[place])
        table[place] = value if old == UNKNOWN else (old + value) / 2
