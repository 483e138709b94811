"""Memory-mapped files: larger than the memory, and handing pages that were read back."""

from __future__ import annotations

import ctypes
import functools
import mmap
import pathlib
import sys
from collections.abc import Callable, Iterator

from torch import Tensor

# Python has no name for it before 3.13; the number is that of x86 and ARM.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_PAGE_OUT = 21  # Linux's MADV_PAGEOUT
READ = 256  # latents that are read of a file before they are let out of memory


def map_without_reserve(file: pathlib.Path) -> mmap.mmap:
    """A private mapping of a file for which the system sets no memory aside.

    For files larger than memory and swap together, of which Linux makes no other private mapping:
    what is written to it takes memory, and all else can be read again from the file. Raises OSError
    where that is not possible.
    """
    if sys.platform != "linux":
        raise OSError("there are such mappings only on Linux")
    with file.open("rb") as opened:
        return mmap.mmap(
            opened.fileno(),
            0,
            flags=mmap.MAP_PRIVATE | _NO_RESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )


def release(tensor: Tensor) -> None:
    """Take a tensor's pages out of this process's memory; reading it brings them back.

    Only for a contiguous tensor that lies in a private mapping of a file and was never written to:
    what was written would be lost, and so would numbers that are in no file. Elsewhere than on
    Linux the system does it automatically, when memory is short.
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


def page_out(tensor: Tensor) -> None:
    """Take the pages of all of a tensor's storage out of memory, where the system can.

    Nothing is lost, whatever it lies in: pages of a file are read again, others come back from the
    swap. For a tensor on a disk that was read from end to end.
    """
    advise, storage = _madvise(), tensor.untyped_storage()
    if advise is None or tensor.device.type != "cpu":
        return
    begin = storage.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    advise(begin, storage.data_ptr() + storage.nbytes() - begin, _PAGE_OUT)


def read_through(tensor: Tensor, on_disk: bool) -> Iterator[Tensor]:
    """A tensor (B, C, F, h, w) latent by latent, (B, C, 1, h, w).

    on_disk: whether it lies in a file: what has been read is let out of memory now and then.
    """
    for number, latent in enumerate(tensor.split(1, dim=2), 1):
        yield latent
        if on_disk and number % READ == 0:
            page_out(tensor)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
