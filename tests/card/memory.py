"""What ComfyUI's native library (comfy_aimdo) manages of a card: pages of VRAM, pinned RAM, files.

The classes have the names and calls of the library's own, 0.4.11. Memory that nobody has filled
holds 0xFF, which is NaN in every format of numbers, so that what is read too late or too soon is
seen. A page that is in use is never taken away, and what is used is counted.
"""

import ctypes
import mmap
import os

import torch

from .tensors import KINDS, find_place

PAGE = 32 * 1024  # The library's have 32 MB; the tests' models are smaller in the same measure.
UNWRITTEN = 0xFF


@torch.inference_mode(False)
def reserve(size):
    """Addresses, which take no memory before they are written to."""
    return torch.empty(size, dtype=torch.uint8)


class Vram:
    """The card's memory for weights: `budget` bytes, shared by the models' `ModelVBAR`s."""

    def __init__(self):
        self.budget, self.bars, self.versions = 1 << 40, [], 0
        self.most_used = 0

    def used(self):
        return sum(bar.loaded_size() for bar in self.bars)

    def in_use(self):
        """Pages that some layer has in use."""
        return sum(sum(bar.pins) for bar in self.bars)

    def make_bar(self, size, _device):
        return ModelVBAR(self, int(size))


class ModelVBAR:
    """A model's addresses on the card, of which pages have memory or not."""

    def __init__(self, vram, size):
        self.vram, self.offset, count = vram, 0, -(-size // PAGE)
        self.numbers = reserve(count * PAGE)
        self.versions, self.pins, self.watermark = [0] * count, [0] * count, count
        vram.bars.insert(0, self)

    def prioritize(self):
        self.vram.bars.remove(self)
        self.vram.bars.insert(0, self)
        self.watermark = len(self.pins)

    def alloc(self, size):
        begin = -(-self.offset // 512) * 512
        assert begin + size <= len(self.numbers), "VBAR OOM"
        self.offset = begin + size
        return self, begin, size

    def fault(self, begin, size):
        """Memory for a weight, in use from now on, and its version; None where there is none."""
        pages = range(begin // PAGE, -(-(begin + size) // PAGE))
        if pages.stop > self.watermark:
            return None
        for page in pages:
            if not self.versions[page] and not self._fill(page):
                self.watermark = min(self.watermark, page)
                return None
        for page in pages:
            self.pins[page] += 1
        return b"".join(self.versions[page].to_bytes(8, "little") for page in pages)

    def _fill(self, page):
        lower = self.vram.bars[self.vram.bars.index(self) + 1 :]
        for bar, after in [*((bar, -1) for bar in reversed(lower)), (self, page)]:
            missing = self.vram.used() + PAGE - self.vram.budget
            if missing > 0:
                bar.free_memory(missing, after)
        if self.vram.used() + PAGE > self.vram.budget:
            return False
        self.vram.versions += 1
        self.versions[page] = self.vram.versions
        self.vram.most_used = max(self.vram.most_used, self.vram.used())
        self.numbers[page * PAGE : (page + 1) * PAGE] = UNWRITTEN
        return True

    def unpin(self, begin, size):
        for page in range(begin // PAGE, -(-(begin + size) // PAGE)):
            assert self.pins[page], "a weight was given back that was not in use"
            self.pins[page] -= 1

    def free_memory(self, size, after=-1):
        """Take memory from the last pages, those in use left out; bytes that became free."""
        freed = 0
        for page in reversed(range(after + 1, len(self.pins))):
            if freed < size and self.versions[page] and not self.pins[page]:
                self.versions[page], freed = 0, freed + PAGE
                self.numbers[page * PAGE : (page + 1) * PAGE] = UNWRITTEN
                self.watermark = min(self.watermark, page)
        return freed

    def loaded_size(self):
        return sum(map(bool, self.versions)) * PAGE


class VRAMBuffer:
    """A place on the card through which weights pass that stay elsewhere."""

    def __init__(self, _max_size, _device):
        self.numbers = reserve(0)

    def size(self):
        return len(self.numbers)

    def get(self, size, offset=0):
        if size + offset > len(self.numbers):
            self.numbers = reserve(size + offset)
        # What went through before is gone.
        self.numbers[offset : offset + size] = UNWRITTEN
        return self, offset, size


def to_tensor(place, device):
    """The library's `aimdo_to_tensor`."""
    holder, begin, size = place
    return KINDS[find_place(device)](holder.numbers[begin : begin + size])


class HostBuffer:
    """RAM that grows without moving, for pinned copies of weights."""

    def __init__(self, runtime, size, prewarm=0, max_grow_size=0, mark_cold=True):
        self.runtime = runtime
        self.size, self.numbers = 0, reserve(max(int(size), int(max_grow_size)))
        self.extend(size)

    def get_raw_address(self):
        return self.numbers.data_ptr()

    def extend(self, size, reallocate=False, register=True):
        if self.size + size > len(self.numbers):
            raise RuntimeError("HostBuffer.extend failed")
        self.size += int(size)

    def truncate(self, size, do_unregister=True):
        if do_unregister:
            begin = self.get_raw_address()
            self.runtime.unregister_all(begin + size, begin + self.size)
        self.numbers[size : self.size] = UNWRITTEN
        self.size = size

    def read_file_slice(
        self, file, file_offset, size, offset=0, stream=0, device_ptr=0, device=None
    ):
        self.runtime.read_file(file, file_offset, size, self.get_raw_address() + offset)
        if device_ptr:
            ctypes.memmove(device_ptr, self.get_raw_address() + offset, size)


class ModelMMAP:
    """A file in memory, which the host reads as one."""

    def __init__(self, path):
        self.file = open(path, "rb")  # noqa: SIM115 (open as long as this)
        self.whole = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_COPY)

    def get(self):
        return ctypes.addressof(ctypes.c_char.from_buffer(self.whole))

    def get_file_handle(self):
        return self.file.fileno()

    def bounce(self):
        return True


class Runtime:
    """CUDA's calls for memory that it can read on its own, pinned for as long as registered.

    And the library's for files; `bytes_read` is how much of them they took.
    """

    def __init__(self):
        self.registered, self.bytes_read = {}, 0

    def cudaHostRegister(self, address, size, _flags):
        assert address not in self.registered, "pinned twice"
        self.registered[address] = size
        return 0

    def cudaHostUnregister(self, address):
        return 0 if self.registered.pop(address, 0) else 1

    def unregister_all(self, begin, end):
        for address in [a for a in self.registered if begin <= a < end]:
            del self.registered[address]

    def read_file(self, file, file_offset, size, address):
        number = file if isinstance(file, int) else file.fileno()
        numbers = os.pread(number, size, file_offset)
        assert len(numbers) == size, "the file is shorter than what was to be read of it"
        ctypes.memmove(address, numbers, size)
        self.bytes_read += size

    def read_file_to_device(
        self, file, file_offset, size, stream, device_ptr, device, mark_cold=True
    ):
        self.read_file(file, file_offset, size, device_ptr)
