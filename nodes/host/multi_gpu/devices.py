"""Which GPUs: what a person writes, and what a worker process has to be told of its own."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass

import comfy.model_management
import torch
import torch.distributed as dist

from ....skyreels_model.budget import GB
from ....skyreels_model.rules import refusal
from ..notice import LOG

ALL = "all"
# For development: with it "cpu:2" means two processes on the processor.
CPU_RANKS = "SKYREELS_V2_CPU_RANKS"
VISIBLE = "CUDA_VISIBLE_DEVICES"
FREE = 0.9  # of a card, below which another program is on it
UNEQUAL = 0.9  # of the largest card's memory, below which another is called smaller


@dataclass(frozen=True)
class Devices:
    """Where the ranks compute, this process first.

    numbers: of the cards, as PyTorch counts them here; empty on the processor. world: how many.
    """

    world: int
    numbers: tuple[int, ...] = ()

    def name(self, rank: int) -> str:
        """What people call a rank's device."""
        return f"GPU {self.numbers[rank]}" if self.numbers else f"CPU process {rank}"

    def environment(self, rank: int) -> dict[str, str]:
        """This process's variables, with which a worker sees its own card only."""
        found = dict(os.environ)
        if self.numbers:
            number, visible = self.numbers[rank], found.get(VISIBLE)
            found[VISIBLE] = visible.split(",")[number].strip() if visible else str(number)
        return found


def find_devices(gpus: str) -> Devices:
    """The devices that a person means; ValueError, with what there is, for any other."""
    if sys.platform != "linux":
        raise ValueError(
            f"SkyReels-V2 Multi-GPU runs on Linux only, and this is {sys.platform}; connect the "
            f"model without it"
        )
    asked = gpus.strip().lower()
    own = comfy.model_management.get_torch_device()
    ranks = re.fullmatch(r"cpu:([1-8])", asked)
    if ranks and own.type == "cpu" and os.environ.get(CPU_RANKS):
        return Devices(int(ranks[1]))
    if own.type != "cuda" or not comfy.model_management.is_nvidia():
        raise ValueError(
            f"gpus is {gpus!r}, and ComfyUI computes on {own.type} here; this node needs NVIDIA "
            f"cards. Use the model without it"
        )
    there, first = torch.cuda.device_count(), torch.cuda.current_device()
    first = first if own.index is None else own.index
    numbers = _read_numbers(gpus, asked, there)
    if first not in numbers:
        rule = f"with {first}, the GPU that ComfyUI itself uses, among others"
        raise refusal("gpus", gpus, rule, ", ".join(map(str, sorted({first, *numbers}))))
    numbers = (first, *(n for n in numbers if n != first))
    if len(numbers) > 1:
        _require_nccl()
        _compare(numbers)
        _warn_of_others(numbers[1:])
    return Devices(len(numbers), numbers)


def _read_numbers(gpus: str, asked: str, there: int) -> tuple[int, ...]:
    if asked == ALL:
        return tuple(range(there))
    parts = [part.strip() for part in asked.split(",")]
    known = [str(number) for number in range(there)]
    if len(set(parts)) < len(parts) or not set(parts) <= set(known):
        rule = f"all, or different numbers of {', '.join(known)} with commas between"
        raise refusal("gpus", gpus, rule, ALL)
    return tuple(map(int, parts))


def _require_nccl() -> None:
    if not dist.is_nccl_available():
        raise ValueError(
            "this PyTorch has no NCCL, by which GPUs exchange data; install PyTorch for Linux and "
            "CUDA from pytorch.org, or connect the model without SkyReels-V2 Multi-GPU"
        )


def _warn_of_others(numbers: tuple[int, ...]) -> None:
    """Say so where another program, such as a second ComfyUI, has its data on a card."""
    for number in numbers:
        free, total = torch.cuda.mem_get_info(number)
        if free < FREE * total:
            LOG.warning(
                "GPU %d has %.1f of %.1f GB in use by another program. Both will be slow, and "
                "memory may not suffice. End it, or choose other gpus",
                number, (total - free) / GB, total / GB,
            )  # fmt: skip


def _compare(numbers: tuple[int, ...]) -> None:
    """Say so where cards differ: the smallest and slowest decides for all."""
    found = [torch.cuda.get_device_properties(number) for number in numbers]
    sizes = [each.total_memory for each in found]
    if len({each.name for each in found}) > 1 or min(sizes) < UNEQUAL * max(sizes):
        names = ", ".join(f"{n}: {each.name}" for n, each in zip(numbers, found, strict=True))
        LOG.warning("The GPUs differ (%s): all wait for the slowest at each step", names)
