"""Seconds and bytes of a call on the device, and how far two results are apart."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

GB = 2**30


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def clean(device: torch.device) -> None:
    """Give back what nothing refers to any more; a processor has room for it."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def seconds(device: torch.device, call: Callable[[], Any], repeats: int = 1) -> float:
    """The least of a few runs by the clock, the device waited for."""
    least = float("inf")
    for _ in range(1 if device.type == "cpu" else repeats):
        synchronize(device)
        begin = time.perf_counter()
        call()
        synchronize(device)
        least = min(least, time.perf_counter() - begin)
    return least


def short_seconds(device: torch.device, call: Callable[[], Any], calls: int = 20) -> float:
    """The mean of many calls that are too short to time one by one, after a warm-up."""
    if device.type == "cpu":
        return seconds(device, call)
    for _ in range(3):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / calls


class Peak:
    """Bytes on the card within it: the most beyond what was there, and the most reserved.

    Both are None on a processor, which keeps no such count.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts = device.type == "cuda"
        self.beyond: float | None = None
        self.reserved: float | None = None

    def __enter__(self) -> Peak:
        if self.counts:
            clean(torch.device("cuda"))
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_error: object) -> None:
        if self.counts:
            torch.cuda.synchronize()
            self.beyond = float(torch.cuda.max_memory_allocated() - self._before)
            self.reserved = float(torch.cuda.max_memory_reserved())


def gigabytes(count: float | None) -> str | None:
    return None if count is None else f"{count / GB:.2f} GiB"


def error(found: Tensor, right: Tensor) -> float:
    """Norm of the difference over the norm of what is right."""
    right = right.double()
    return float((found.double() - right).norm() / right.norm())
