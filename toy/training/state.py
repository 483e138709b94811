"""What a training keeps on disk: its state after every few minutes, and its log of losses."""

from __future__ import annotations

import json
import pathlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from toy.safetensors_writer import replacing

NEEDED_BYTES = 1_000_000_000  # state and latents of a whole run, with the files being replaced
SAVE_EVERY = 120.0  # seconds
LOG_EVERY = 20.0  # seconds


class Trainee(Protocol):
    """What a stage trains."""

    def step(self, rng: np.random.Generator, progress: float) -> float:
        """One step of the optimiser; its loss."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Workspace:
    """The folder of a training run, outside version control; whatever is in it is complete."""

    folder: pathlib.Path
    seed: int
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Raises OSError where the folder cannot be written or its disk has no room."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < NEEDED_BYTES:
            raise OSError(
                f"{self.folder} has {free / 1e9:.1f} GB free; training keeps its state there and "
                f"needs {NEEDED_BYTES / 1e9:.1f} GB: make room, or choose another --state folder"
            )

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under this name, or None."""
        path = self.folder / f"{name}.pt"
        if not path.is_file():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state

    def save(self, name: str, state: dict[str, Any]) -> None:
        with replacing(self.folder / f"{name}.pt") as temporary:
            torch.save(state, temporary)

    def log(self, stage: str, **numbers: Any) -> None:
        """A line for the eye, and the same as JSON in log.jsonl."""
        shown = "  ".join(f"{key} {_short(value)}" for key, value in numbers.items())
        print(f"{time.monotonic() - self.started:7.0f} s  {stage:12} {shown}", flush=True)
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, **numbers}) + "\n")

    def rng(self, stage: str, step: int) -> np.random.Generator:
        """Draws of one step: the same ones whether or not the run was interrupted before."""
        digest = np.frombuffer(stage.encode(), np.uint8).sum()
        return np.random.default_rng([self.seed, int(digest), step])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_stage(work: Workspace, stage: str, trainee: Trainee, steps: int) -> None:
    """Train for `steps` steps, from where an earlier run of this stage stopped."""
    state = work.load(stage)
    first = 0
    if state is not None:
        first = state["step"]
        trainee.load_state_dict(state["trainee"])
    saved = logged = time.monotonic()
    losses: list[float] = []
    for step in range(first, steps):
        rng = work.rng(stage, step)
        torch.manual_seed(int(rng.integers(2**62)))
        losses.append(trainee.step(rng, step / steps))
        now = time.monotonic()
        if now - logged > LOG_EVERY or step + 1 == steps:
            speed = (now - logged) / len(losses)
            work.log(stage, step=step + 1, of=steps, loss=float(np.mean(losses)), s_a_step=speed)
            logged, losses = now, []
        if now - saved > SAVE_EVERY or step + 1 == steps:
            work.save(stage, {"step": step + 1, "trainee": trainee.state_dict()})
            saved = now


def batches(items: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(items)."""
    return (slice(start, start + size) for start in range(0, items, size))
