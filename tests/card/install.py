"""Makes ComfyUI, booted for the CPU, take the stand-in for its device until it is taken away."""

import contextlib
import functools
import types

import torch

from devtools import inprocess

from . import memory
from .tensors import CARD, Dispatch, chosen, current_card, find_place, set_data

GB = 1 << 30
# Of a card with bf16, and without products of fp8 numbers.
PROPERTIES = types.SimpleNamespace(major=8, minor=6, name="stand-in", total_memory=24 * GB)
FILLED = "reserved_bytes.all.current", "active_bytes.all.current"

DICTIONARIES = ("STREAMS", "stream_counters", "STREAM_CAST_BUFFERS", "STREAM_AIMDO_CAST_BUFFERS",
                "PINNED_MEMORY")  # fmt: skip


class Stream:
    """A queue of work, of which nothing waits: all is done at once."""

    cuda_stream = 0

    def __init__(self, device=None, priority=0):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Event:
    """A place in a queue of work, all of which is done."""

    def record(self, stream=None):
        pass

    def query(self):
        return True

    def synchronize(self):
        pass


class Generator(torch.Generator):
    """Draws on the CPU, whatever it is for."""

    def __new__(cls, device=None):
        return super().__new__(cls, "cpu")


class Card:
    """What tests ask the card: its memory for weights (`vram`) and pinned RAM (`runtime`)."""

    def __init__(self):
        self.vram, self.runtime = memory.Vram(), memory.Runtime()


@contextlib.contextmanager
def installed(patch, cards=1):
    """The stand-in as the host's NVIDIA card, under the classic patcher; `use_dynamic` is next.

    patch: pytest's MonkeyPatch, which takes it all back. cards: two of them share one memory.
    """
    import comfy.model_management as management

    card, chosen.card = Card(), CARD
    _replace_cuda(patch, card, cards)
    _replace_library(patch, card)
    for name, value in {
        # What the host found out when it was imported.
        "cpu_state": management.CPUState.GPU,
        "vram_state": management.VRAMState.NORMAL_VRAM,
        "NUM_STREAMS": 2,
        "MAX_PINNED_MEMORY": 4 * GB,
        "MIN_WEIGHT_MEMORY_RATIO": 0.0,
        "ENABLE_PYTORCH_ATTENTION": True,
        "psutil": _Machine,
        # What it keeps from run to run.
        "current_loaded_models": [],
        "TOTAL_PINNED_MEMORY": 0,
        "DIRTY_MMAPS": set(),
        **{name: {} for name in DICTIONARIES},
    }.items():
        patch.setattr(management, name, value)
    with Dispatch():
        yield card
        inprocess.unload_models()
        management.reset_cast_buffers()


def use_dynamic(patch):
    """What the host's `main.py` does on NVIDIA."""
    import comfy.memory_management
    import comfy.model_patcher

    patch.setattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcherDynamic)
    patch.setattr(comfy.memory_management, "aimdo_enabled", True)


class _Machine:
    """RAM as the host sees it, the same on every machine."""

    @staticmethod
    def virtual_memory():
        return types.SimpleNamespace(total=64 * GB, available=32 * GB)

    @staticmethod
    def swap_memory():
        return types.SimpleNamespace(total=0, free=0, percent=0.0)


def _replace_cuda(patch, card, cards):
    from comfy.quant_ops import QuantizedTensor

    size = PROPERTIES.total_memory
    patch.setattr(torch.version, "cuda", "13.0")
    for name, value in {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: cards,
        "current_device": current_card,
        "set_device": _choose,
        "get_device_properties": lambda device=None: PROPERTIES,
        "get_device_capability": lambda device=None: (PROPERTIES.major, PROPERTIES.minor),
        "get_device_name": lambda device=None: PROPERTIES.name,
        "get_allocator_backend": lambda: "native",
        "memory_stats": lambda device=None: dict.fromkeys(FILLED, 0),
        "mem_get_info": lambda device=None: (size - card.vram.used(), size),
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": lambda device=None: Stream(),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "cudart": lambda: card.runtime,
    }.items():
        patch.setattr(torch.cuda, name, value)
    patch.setattr(torch, "Generator", Generator)
    patch.setattr(torch, "tensor", functools.partial(_make_tensor, torch.tensor))
    patch.setattr(
        torch.nn.Parameter, "data", property(torch.Tensor.detach, set_data), raising=False
    )
    # PyTorch's own asks for a driver of the card.
    patch.setattr(
        QuantizedTensor,
        "copy_",
        lambda self, *given, **options: torch.ops.aten.copy_(self, *given, **options),
    )


def _choose(device):
    chosen.card = find_place(device)


def _make_tensor(make, data, *, device=None, **options):
    """PyTorch's own would take it to the card below what is caught here."""
    made = make(data, **options)
    return made if device is None else made.to(device)


def _replace_library(patch, card):
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_mmap
    import comfy_aimdo.model_vbar
    import comfy_aimdo.torch
    import comfy_aimdo.vram_buffer

    patch.setattr(comfy_aimdo.model_vbar, "ModelVBAR", card.vram.make_bar)
    patch.setattr(comfy_aimdo.vram_buffer, "VRAMBuffer", memory.VRAMBuffer)
    patch.setattr(
        comfy_aimdo.host_buffer, "HostBuffer", functools.partial(memory.HostBuffer, card.runtime)
    )
    patch.setattr(comfy_aimdo.host_buffer, "read_file_to_device", card.runtime.read_file_to_device)
    patch.setattr(comfy_aimdo.model_mmap, "ModelMMAP", memory.ModelMMAP)
    patch.setattr(comfy_aimdo.torch, "aimdo_to_tensor", memory.to_tensor)
