"""What a section is given: the device, the sizes, the time that is left, and where rows go."""

from __future__ import annotations

import importlib
import pathlib
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import torch

from . import driver
from .sections import SIZES, Section
from .timing import clean, synchronize

TINY = (3, 8, 8)  # latents that a processor computes at once


@dataclass
class Run:
    """A section at work; `rehearse`: on the processor, at tiny sizes, to see that it runs."""

    section: Section
    rehearse: bool
    until: float
    packed: pathlib.Path
    reference: pathlib.Path | None
    size: tuple[int, int, int]  # of the latents: frames, height, width
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = torch.device("cpu" if self.rehearse else "cuda")
        # The reference casts to bf16 only where CUDA's autocast is; on a CPU all is float32.
        self.dtype = torch.float32 if self.rehearse else torch.bfloat16

    def row(self, **cells: Any) -> None:
        """A row of the table, written at once."""
        driver.send("row", cells=cells)

    def attempt(self, first: str, measure: Any, seconds: float = 0.0) -> Any:
        """What `measure()` returns; where it fails or needs more than is left, a row that says so.

        first: what stands in the row's first column. seconds: what it is expected to take.
        """
        name = self.section.columns[0]
        if self.until - time.time() < seconds:
            self.row(**{name: first, "note": f"left out: would take {seconds:.0f} s"})
            return None
        try:
            return measure()
        except Exception as error:
            traceback.print_exc()
            said = " ".join(str(error).split())[:160]
            self.row(**{name: first, "note": f"{type(error).__name__}: {said}"})
            self.require_device()
            return None
        finally:
            clean(self.device)

    def require_device(self) -> None:
        """End the process where an error has spoiled the device for it; a new one goes on."""
        try:
            synchronize(self.device)
            torch.ones(1, device=self.device).sum().item()
        except Exception as error:
            sys.exit(f"the device is lost to this process: {error}")


def work(sections: list[Section], options: Any) -> None:
    """Run sections one after the other in this process, each in its own try."""
    torch.set_grad_enabled(False)
    for section in sections:
        driver.send("begin")
        until = min(options.until, time.time() + section.seconds)
        size = TINY if options.rehearse else SIZES[options.size]
        run = Run(section, options.rehearse, until, options.packed, options.reference, size)
        module = importlib.import_module(f"gpu.{section.file}")
        run.attempt("the section", lambda: module.measure(run))  # noqa: B023 (called at once)
        driver.send("end")
