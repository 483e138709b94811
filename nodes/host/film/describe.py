"""Any value of the host as plain ones, equal in every process where it does the same.

What other nodes put into a model or a prompt is functions, objects and modules of any kind. They
are told by their code and by what they hold. What is kept between calls is no setting, and left
out where that can be seen.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import types
from collections.abc import Iterable, Mapping
from typing import Any

import comfy.context_windows
import comfy.hooks
import comfy.ldm.modules.attention
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ....skyreels_model.store.digests import digest, sample
from ..sockets.sharing import SHARED

# By what several GPUs are at work, ours and the host's: a film is the same on one.
SEVERAL = {SHARED, "multigpu", "multigpu_options", "multigpu_clones", "multigpu_thread_pool"}
DEEP = 40  # levels, after which a value is told by its kind alone
Patcher = comfy.model_patcher.ModelPatcher
PLAIN = bool | int | float | str | bytes
NAMED = torch.dtype | torch.device | type | types.ModuleType | types.BuiltinFunctionType
# What the host writes into objects of these kinds while they run, or names at random.
OF_A_RUN: dict[type, set[str]] = {
    comfy.hooks.Hook: {"hook_ref", "_skip_adding"},
    comfy.hooks.HookGroup: {"_hook_dict"},
    comfy.hooks.HookKeyframe: {"start_t"},
    comfy.context_windows.IndexListContextHandler: {"_step", "_model"},
}
WEIGHTS = "diffusion_model."  # where they lie in a model of the host
# What nodes can do to a model.
DONE = (
    "patches", "model_options", "wrappers", "callbacks", "object_patches", "injections",
    "attachments", "additional_models", "weight_wrapper_patches",
)  # fmt: skip


class Describer:
    """Describes values; each object once.

    whole: tensors with all of their numbers, not a sample. state: also what functions keep between
    their calls.
    """

    def __init__(self, whole: bool = False, state: bool = False) -> None:
        self.whole, self.state = whole, state
        self.parts: dict[int, str] = {}  # modules of models, whose weights are told with these
        self.known: dict[int, tuple[Any, str]] = {}  # keeps what it knows alive, or ids come again
        self.path: list[int] = []

    def describe(self, value: Any) -> Any:
        """A value as a number, text or list of them and tensors, or the digest of such a list."""
        if value is None or isinstance(value, PLAIN):
            return value
        if isinstance(value, Tensor):
            return self._describe_tensor(value)
        if isinstance(value, NAMED):
            return name_of(value)
        key = id(value)
        if key in self.known:
            return self.known[key][1]
        if key in self.path:
            return f"{len(self.path) - self.path.index(key)} levels up"
        if len(self.path) > DEEP:
            return name_of(value)
        self.path.append(key)
        try:
            found = digest(list(self._describe_content(value)))
        finally:
            self.path.pop()
        self.known[key] = value, found
        return found

    def describe_model(self, model: Patcher, weights: bool = True) -> dict[str, Any]:
        """A MODEL: its weights as they are in its file, and what nodes have done to it.

        weights: whether these are described, if they have not been.
        """
        found: dict[str, Any] = {}
        if id(model.model) not in self.parts:
            named = modules_of(model.model.diffusion_model).items()
            self.parts |= {id(m): uncompiled(name) for name, m in named if not is_compiled(m)}
            self.parts[id(model.model)] = "model"
            if weights:
                found = self._describe_network(model)
        return found | {name: self.describe(getattr(model, name)) for name in DONE}

    def _describe_network(self, model: Patcher) -> dict[str, Any]:
        """What is loaded: weights, layers, attention, number formats.

        While a model is loaded, some of its objects are others, which nodes have put there.
        """
        weights, transformer = model.get_key_patches(WEIGHTS), model.model.diffusion_model
        computed = [model.get_model_object("manual_cast_dtype"), model.force_cast_weights]
        layers = {type(m) for m in modules_of(transformer).values() if not is_compiled(m)}
        settings = {"attention": comfy.ldm.modules.attention.optimized_attention}
        for name, part in vars(transformer).items():
            own = inspect.ismethod(part) and part.__self__ is transformer
            if name[0] != "_" and not own:
                settings[name] = model.object_patches_backup.get(WEIGHTS + name, part)
        return {
            "weights": {uncompiled(k): self.describe(found[0][0]) for k, found in weights.items()},
            "layers": self.describe(layers),
            "settings": self.describe(settings),
            "sampling": self.describe(model.get_model_object("model_sampling")),
            "computed": [model.load_device.type, *map(self.describe, computed)],
        }

    def _describe_tensor(self, value: Tensor) -> Any:
        # Packed weights are tensors of another kind, which hold plain ones.
        held = vars(value) if type(value) not in (Tensor, nn.Parameter, nn.Buffer) else {}
        parts = {name: part for name, part in held.items() if not name.startswith("__")}
        if parts:
            return [name_of(value), self.describe(parts)]
        plain = value.detach().as_subclass(Tensor)
        return plain if self.whole else [list(plain.shape), str(plain.dtype), sample(plain)]

    def _describe_content(self, value: Any) -> Iterable[Any]:
        """The kind of a value, and what makes it the one that it is."""
        if isinstance(value, Mapping):
            kept = [(key, part) for key, part in value.items() if key not in SEVERAL]
            pairs = [[self.describe(key), self.describe(part)] for key, part in kept]
            return ["mapping", *sorted(pairs, key=digest)]
        if isinstance(value, list | tuple):
            return ["list", *map(self.describe, value)]
        if isinstance(value, set | frozenset):
            return ["set", *sorted(map(digest, map(self.describe, value)))]
        if isinstance(value, Patcher):
            return ["model", self.describe_model(value)]
        if isinstance(value, nn.Module) and id(value) in self.parts:
            return ["part", self.parts[id(value)]]
        return [name_of(value), *map(self.describe, self._content(value))]

    def _content(self, value: Any) -> Iterable[Any]:
        """What a function or an object holds."""
        if isinstance(value, functools.partial):
            return [value.func, value.args, value.keywords]
        if inspect.ismethod(value):
            return [value.__self__, value.__func__]
        if inspect.isfunction(value):
            return [self._cells(value), value.__defaults__, value.__kwdefaults__, value.__code__]
        if inspect.iscode(value):
            return [value.co_code, value.co_names, value.co_consts]
        if isinstance(value, nn.Module):
            stored = [value._parameters, value._buffers, value._modules]
            return [*stored, {name: part for name, part in vars(value).items() if name[0] != "_"}]
        if isinstance(value, comfy.hooks.HookKeyframeGroup):
            return [value.keyframes]  # the rest is where a run is in them
        left_out = {n for kind in OF_A_RUN if isinstance(value, kind) for n in OF_A_RUN[kind]}
        if not hasattr(value, "__dict__"):
            return reduce(value)
        return [
            {k: v for k, v in vars(value).items() if k not in left_out and "uuid" not in str(k)}
        ]

    def _cells(self, function: types.FunctionType) -> list[Any]:
        """What a function encloses; without `state`, not the variables that it assigns."""
        code, cells = function.__code__, function.__closure__ or ()
        assigned = set() if self.state else assigned_by(code)
        found = []
        for name, cell in zip(code.co_freevars, cells, strict=True):
            if name not in assigned:
                with contextlib.suppress(ValueError):  # it is empty
                    found.append([name, cell.cell_contents])
        return found


def modules_of(network: nn.Module) -> dict[str, nn.Module]:
    """A network's modules by name, with those that others stand in for in their place."""
    found = {}
    for name, module in network.named_modules():
        whole = vars(module).get("whole")
        found |= (
            {name: module}
            if whole is None
            else {f"{name}.{inner}".rstrip("."): part for inner, part in whole.named_modules()}
        )
    return found


def is_compiled(module: nn.Module) -> bool:
    """Whether it stands around another, which has the weights."""
    return "_orig_mod" in module._modules


def uncompiled(name: str) -> str:
    return name.replace("_orig_mod.", "")


def assigned_by(code: types.CodeType) -> set[str]:
    """The enclosed variables that a function, or one inside it, assigns: what it remembers."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    inner = [assigned_by(part) for part in code.co_consts if inspect.iscode(part)]
    return own.intersection(code.co_freevars).union(*inner)


def functions_of(value: Any) -> Iterable[Any]:
    """What stands in a model's patches, however deep in lists and mappings."""
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        yield value
        return
    for part in value:
        yield from functions_of(part)


def name_of(value: Any) -> str:
    """The name of a function or class, or of an object's class, wherever its pack lies."""
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, types.ModuleType):
        return _without_folder(value.__name__)
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{_without_folder(str(getattr(named, '__module__', '')))}.{named.__qualname__}"


def _without_folder(module: str) -> str:
    """The host names the modules of packs after their folders."""
    return module.replace("\\", "/").rsplit("/", 1)[-1]


def reduce(value: Any) -> list[Any]:
    """What Python would write down of an object without attributes; nothing if it cannot."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        return []  # a lock, a handle: nothing that makes a film another
    if isinstance(reduced, str):
        return [reduced]
    make, given, *rest = reduced
    state = rest[0] if rest else None
    return [make, given, state, *(list(part) for part in rest[1:3] if part is not None)]
