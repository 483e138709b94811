"""What of a film is written down: of a finished window, and of a window at work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..cache.forecast import ForecastState
from ..grid import frame_length
from ..plan.film_plan import FilmPlan
from ..rollout.film import Film, Tail
from ..solvers import SolverState

Tensors = dict[str, Tensor]
# Of the dataclasses that a cache may keep in `Film.cache`, those that can be written down.
CACHES: dict[str, Any] = {ForecastState.__name__: ForecastState}


def pack_window(film: Film) -> tuple[Tensors, dict[str, Any]]:
    """The window that `film` has just finished, and what it hands on to the next.

    Of the tail, frames and latents are large and seldom needed: where the next window adds enough
    of its own, they are left out.
    """
    tail, whole = film.tail, not brings_enough(film.plan, film.window)
    found = {
        "latents": film.finished[-1],
        "reference": film.reference,
        "carried": film.carried,
        "tail.colours": tail.colours,
        "tail.frames": tail.frames if whole else None,
        "tail.latents": tail.latents if whole else None,
    }
    return {n: tensor for n, tensor in found.items() if tensor is not None}, {"tail": whole}


def unpack_tail(tensors: Mapping[str, Tensor]) -> Tail:
    names = (field.name for field in dataclasses.fields(Tail))
    return Tail(**{name: tensors.get(f"tail.{name}") for name in names})


def brings_enough(plan: FilmPlan, index: int) -> bool:
    """Whether a window adds as much as an overlap, as far as there is such a window."""
    if index >= plan.num_windows:
        return True
    window = plan.window_at(index)
    return frame_length(window.length) - frame_length(window.repeated) >= plan.overlap


def pack_row(film: Film) -> tuple[Tensors, dict[str, Any]]:
    """A window at work: tensors, and numbers for JSON. Without `Film.passed`."""
    assert film.latents is not None and film.solver_state is not None
    tensors = {"latents": film.latents}
    tensors |= {f"solver.{name}": tensor for name, tensor in film.solver_state.history.items()}
    numbers: dict[str, Any] = {"row": film.row, "begin": film.begin, "nominal": film.nominal}
    if film.cache is not None:
        numbers["cache"] = {"kind": type(film.cache).__name__}
        for field in dataclasses.fields(film.cache):  # type: ignore[arg-type]
            value = getattr(film.cache, field.name)
            if isinstance(value, Tensor):
                tensors[f"cache.{field.name}"] = value
            else:
                numbers["cache"][field.name] = value
    return tensors, numbers


def unpack_row(film: Film, tensors: Tensors, numbers: Mapping[str, Any]) -> None:
    """Put a window at work into the film, on the CPU."""
    cache = dict(numbers.get("cache") or {})
    kind = cache.pop("kind", None)
    cache |= _under("cache.", tensors)
    film.row, film.begin, film.nominal = numbers["row"], numbers["begin"], numbers["nominal"]
    film.latents = tensors["latents"]
    film.solver_state = SolverState(_under("solver.", tensors))
    film.cache = CACHES[kind](**cache) if kind else None


def _under(prefix: str, tensors: Tensors) -> Tensors:
    """The tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
