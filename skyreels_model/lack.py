"""Memory that does not suffice: how it is known, and what people are told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

# How back ends say that memory does not suffice where they have no class of error for it: PyTorch's
# allocator for the CPU on Linux and on Windows; CUDA itself, MPS and XPU; cuBLAS and cuDNN; and
# PyTorch's convolutions, where no way to compute one found memory for its workspace.
OF_THE_MACHINE = ("can't allocate memory", "not enough memory")
OF_A_DEVICE = ("out of memory", "alloc_failed", "unable to find an engine")
TOLD = "there is not enough memory"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, a device's or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _says(error, OF_THE_MACHINE + OF_A_DEVICE)


def _says(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error).lower()
    return any(word in text for word in words)


@contextlib.contextmanager
def explain_lack(
    what: str, advice: str, lacks: Callable[[Exception], bool] = lacks_memory
) -> Iterator[None]:
    """Where memory does not suffice inside, say for what, and what to change; once.

    Where it was a device's, so is the new error, whatever its class was: by that ComfyUI knows that
    its models have to leave a GPU.
    """
    try:
        yield
    except Exception as error:
        if not lacks(error) or TOLD in str(error):
            raise
        of_machine = isinstance(error, MemoryError) or _says(error, OF_THE_MACHINE)
        kind = MemoryError if of_machine else torch.OutOfMemoryError
        told = str(error) or type(error).__name__
        raise kind(f"{what}: {TOLD}; {advice}. Reported: {told}") from error
