"""Memory that does not suffice: how it is known, and what people are told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

# How back ends say that memory does not suffice where they have no class of error for it: PyTorch's
# allocator for the CPU on Linux and on Windows; MPS, XPU and older CUDA; cuBLAS and cuDNN.
OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
TOLD = "there is not enough memory"


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory does not suffice, a device's or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


@contextlib.contextmanager
def explain_lack(
    what: str, advice: str, lacks: Callable[[Exception], bool] = lacks_memory
) -> Iterator[None]:
    """Where memory does not suffice inside, say for what, and what to change; once.

    The kind of error stays, by which ComfyUI knows that its models have to leave a GPU.
    """
    try:
        yield
    except Exception as error:
        if not lacks(error) or TOLD in str(error):
            raise
        kind = type(error) if isinstance(error, torch.OutOfMemoryError) else MemoryError
        told = str(error) or type(error).__name__
        raise kind(f"{what}: {TOLD}; {advice}. Reported: {told}") from error
