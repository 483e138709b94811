"""What of a film is made again, and which takes it shows: `shot 3: seed 7 / shot 5: take 1`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..rules import refusal, refuse
from .film_plan import FilmPlan
from .storyboard import MOST_SEED

EXAMPLE = "'shot 3: seed 7', 'shot 3 only: seed 7' or 'shot 3: take 1'"
MAX_LENGTH = 100_000  # characters
MOST_TAKE = 10**6
_LINE = re.compile(
    r"(shot|window) (\d{1,9})( only)?(?: ?: ?(?:seed (\d{1,20})|take (\d{1,7})))?", re.IGNORECASE
)


@dataclass(frozen=True)
class Retake:
    """A shot or a window that is made again, or a take of it that is on disk.

    what, number: shot or window, counted from 1. seed: another than it would have. take: the number
    of one that is there. only: what follows stays as it is, so the end of the shot or window, which
    that hangs on, stays, too.
    """

    what: str
    number: int
    only: bool = False
    seed: int | None = None
    take: int | None = None

    def __str__(self) -> str:
        return f"{self.what} {self.number}"

    def windows(self, plan: FilmPlan) -> range:
        """The windows that it is made in. Raises ValueError where the film has none such."""
        if plan.sliding and self.what == "window":
            raise refuse(
                f"takes has {self}, and the film slides as one sequence without windows; name a "
                f"shot, such as 'shot 1'",
                "takes",
            )
        count = max(len(plan.shots), 1) if self.what == "shot" else plan.num_windows
        if not 1 <= self.number <= count:
            rule = f"1 to {count}" if count > 1 else "1, since the film has no more"
            raise refusal(f"{self.what} in takes", self.number, rule, count)
        if self.what == "window":
            return range(self.number - 1, self.number)
        shot = self.number - 1
        if plan.sliding:  # that of its sequence
            fresh = [part.fresh for part in plan.parts[: shot + 1]]
            return range(sum(fresh) - 1, sum(fresh))
        own = [window.index for window in plan.windows() if window.shot == shot]
        return range(own[0], own[-1] + 1)

    def require_room(self, plan: FilmPlan, index: int) -> None:
        """Raise ValueError where its last window cannot keep its end."""
        if plan.sliding or plan.backwards:
            way = "one sequence" if plan.sliding else "from its end"
            raise refuse(
                f"takes has '{self} only', and the film is made as {way}; leave out 'only'", "takes"
            )
        window = plan.window_at(index)
        if window.length - plan.overlap_latents <= window.prefix:
            raise refuse(
                f"takes has '{self} only', and its last window of {window.length} latents has no "
                f"room between the {window.prefix} before it and the {plan.overlap_latents} that "
                f"what follows hangs on; leave out 'only', or set a smaller overlap",
                "takes",
            )


def parse_retakes(text: str) -> tuple[Retake, ...]:
    """The retakes of a text, one a line or after a slash; raises ValueError for anything else."""
    if len(text) > MAX_LENGTH:
        raise refusal("length of takes", len(text), f"at most {MAX_LENGTH} characters", MAX_LENGTH)
    lines = (" ".join(line.split()) for line in re.split(r"[\n/]", text))
    return tuple(_parse_line(line) for line in lines if line)


def _parse_line(line: str) -> Retake:
    found = _LINE.fullmatch(line)
    only = bool(found and found[3])
    if found is None or (found[4] is None and found[5] is None and not only):
        raise refusal("takes", line[:60], f"lines such as {EXAMPLE}")
    seed, take = (None if found[n] is None else int(found[n]) for n in (4, 5))
    if only and take is not None:
        raise refusal("takes", line, "'only' with a seed; a take keeps what it was made with")
    if seed is not None and seed > MOST_SEED:
        raise refusal("seed in takes", seed, f"0 to {MOST_SEED}", MOST_SEED)
    return Retake(found[1].lower(), int(found[2]), only, seed, take)


def place_retakes(plan: FilmPlan, retakes: Sequence[Retake]) -> dict[int, Retake]:
    """The retakes by their windows; raises ValueError where two have one window."""
    placed: dict[int, Retake] = {}
    for retake in retakes:
        for index in retake.windows(plan):
            if index in placed:
                other = placed[index]
                same = f"{retake} twice" if str(other) == str(retake) else f"{other} and {retake}"
                raise refuse(
                    f"takes has {same}, which share window {index + 1}; name each window once",
                    "takes",
                )
            placed[index] = retake
    return placed


def retake_seeds(
    plan: FilmPlan, seeds: Sequence[int], retakes: Sequence[Retake]
) -> tuple[list[int], dict[int, int]]:
    """The seeds of all shots, and those of single windows that have their own, by number."""
    placed = place_retakes(plan, retakes)
    shots = list(seeds)
    windows = {}
    for index, retake in placed.items():
        if retake.seed is None:
            continue
        if retake.what == "shot":
            shots[retake.number - 1] = retake.seed
        else:
            windows[index] = retake.seed
    return shots, windows
