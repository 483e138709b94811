"""Tensors on a card: their numbers lie in the machine's memory, their device says cuda:0 or cuda:1.

As on a card, operators refuse tensors of two devices, except for copies and for numbers without
dimensions. What they compute is what the CPU computes, bit for bit. To PyTorch itself they are on
its meta device, since it has no code for cards here.
"""

import threading

import torch
from torch.utils._python_dispatch import TorchDispatchMode

CARD, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
CPU, META = torch.device("cpu"), torch.device("meta")
chosen = threading.local()  # each thread's card, as in CUDA
aten = torch.ops.aten


class CardTensor(torch.Tensor):
    """Numbers `inner` on the CPU, which everything but this file takes for a card's."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=META,
        )
        made.inner = inner
        return made

    device, is_cuda, is_meta = CARD, True, False

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, tensor):
        set_data(self, tensor)

    def data_ptr(self):
        return self.inner.data_ptr()

    def tolist(self):
        return self.inner.tolist()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and isinstance(args[-1], torch.Tensor) and len(args) == 2:
            # PyTorch would look for a device and a format below what is said here.
            args = (args[0], args[1].device, args[1].dtype)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, types, args, kwargs or {})

    def __repr__(self, **_options):
        return f"CardTensor({self.inner!r})"


class SecondCardTensor(CardTensor):
    """The same on another card."""

    device = SECOND


KINDS = {CARD: CardTensor, SECOND: SecondCardTensor}


def find_place(device):
    """A device with its number: of a card without one, this thread's."""
    device = torch.device(device)
    if device.type != "cuda":
        return torch.device(device.type)
    return current_card() if device.index is None else device


def current_card():
    return getattr(chosen, "card", CARD)


def set_data(parameter, tensor):
    """`parameter.data = tensor`, which PyTorch refuses where the kinds of tensors differ.

    Those of a real card are of the same kind as a CPU's.
    """
    torch.utils.swap_tensors(parameter, torch.nn.Parameter(tensor, requires_grad=False))


class Dispatch(TorchDispatchMode):
    """While it is on, tensors can be made on the card."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, types, args, kwargs or {})


def _run(func, types, args, kwargs):
    known_kinds = torch.Tensor, torch.nn.Parameter, *KINDS.values()
    if not all(kind in known_kinds for kind in types):
        return NotImplemented  # a subclass with numbers of its own, such as a quantised weight
    packet = func.overloadpacket
    if packet is aten._has_compatible_shallow_copy_type:
        return False
    if packet in (aten.to, aten.type_as):
        return _convert(func, args, kwargs)
    given = []
    each(given.append, [*args, *kwargs.values()])
    target = next((t.device for t in given if t.is_cuda), CPU)
    if packet is aten.copy_:
        target = given[0].device
    elif packet is not aten._to_copy:
        places = {t.device for t in given if t.ndim}
        assert len(places) < 2, f"{func} on {places}: {[tuple(t.shape) for t in given]}"
    if kwargs.get("device") is not None:
        target = find_place(kwargs["device"])
        kwargs = {**kwargs, "device": CPU} if target in KINDS else kwargs
    kind = KINDS.get(target)
    known = {}

    def bring(tensor):
        if not isinstance(tensor, CardTensor):
            return tensor
        known[id(tensor.inner)] = tensor
        return tensor.inner

    def place(made):
        # What was written to is given back as it came.
        return known[id(made)] if id(made) in known else kind(made) if kind else made

    named = {name: each(bring, value) for name, value in kwargs.items()}
    return each(place, func(*each(bring, args), **named))


def each(function, value):
    """Lists and tuples of tensors, and of all else, with a function's answer for each tensor."""
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, (list, tuple)):
        return type(value)([each(function, item) for item in value])
    return value


def _convert(func, args, kwargs):
    """A tensor on another device or in another format, the tensor itself where it is so already."""
    named = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    tensor, like = named["self"], named.get("other")
    device = named.get("device") or (tensor if like is None else like).device
    dtype = named.get("dtype") or (tensor if like is None else like).dtype
    device = find_place(device)
    if device == tensor.device and dtype == tensor.dtype and not named.get("copy"):
        return tensor
    with Dispatch():
        return aten._to_copy(tensor, dtype=dtype, device=device)
