"""Memory-mapped files: handing pages that were read back to the system, which still caches them."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable

from torch import Tensor


def release(tensor: Tensor) -> None:
    """Take a tensor's pages out of this process's memory; reading it brings them back.

    Only for a contiguous tensor that lies in a private mapping of a file and was never written to:
    what was written would be lost, and so would numbers that are in no file. Elsewhere than on
    Linux the system does it by itself, when memory is short.
    """
    advise = _madvise()
    if advise is None:
        return
    begin, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    # Whole pages: those at the ends hold numbers of its neighbours, too.
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    behind = (begin + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if behind > first:
        advise(first, behind - first, mmap.MADV_DONTNEED)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
