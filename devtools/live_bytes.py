"""Bytes alive in tensors while code runs, exactly, on any device: also on meta, without computing.

What a library allocates inside of one operator (a product's workspace) is not seen, nor what an
allocator keeps in reserve.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skyreels_model.attention import Attend
from skyreels_model.config import CLIP_DIM, ModelConfig
from skyreels_model.model import SkyReelsModel, layers
from skyreels_model.model.memory import CLIP_TOKENS
from skyreels_model.model.network import BlockCache, RunBlock, run_directly
from skyreels_model.model.positions import Rotate, apply_rope


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operators make within it; `peak` is the most alive at once.

    Use it under `torch.no_grad()` or with gradients: under `inference_mode` composite operators
    arrive whole, and what they make inside is hidden.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.last = ""  # the operator at which the peak was reached
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def reset_peak(self) -> None:
        """Start the peak again at what is alive."""
        self.peak = self.now

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._add(tensor, made=False)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor, made=True)
        if self.now > self.peak:
            self.peak, self.last = self.now, str(func)
        return out

    def _add(self, tensor: Tensor, made: bool) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes() if made else 0
        self.now += size

        def gone(_reference: Any) -> None:
            self.now -= size
            del self._known[address]

        self._known[address] = weakref.ref(storage, gone)


class WithLayouts(LiveBytes):
    """As `LiveBytes`, and each convolution has its input, weights and result once more inside.

    So much cuDNN's kernels for matrix units need where tensors lie channel by channel, and these
    position by position: the workspace of a convolution that takes no more than it has to.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func._schema.name == "aten::convolution":
            inside = sum(tensor.nbytes for tensor in (*args[:2], out))
            if self.now + inside > self.peak:
                self.peak, self.last = self.now + inside, str(func)
        return out


def allocated_peak(run: Callable[[], Any]) -> int:
    """Peak bytes that PyTorch's CPU allocator hands out while `run` really computes.

    It sees what operators allocate inside, too: an instrument independent of `LiveBytes`. One
    thread runs, since in some operators each has buffers of its own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            run()
    finally:
        torch.set_num_threads(threads)
    now = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def flash(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention that makes what flash attention makes: the result, and a sum a row and head."""
    sums = torch.empty(q.shape[0], heads, q.shape[1], device=q.device)
    out = torch.empty_like(q)
    del sums
    return out


def sage(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention that makes what SageAttention makes at most: 8 bits of all, copies of k and v."""
    del heads
    smooth = torch.empty_like(k)
    narrow = [torch.empty_like(t, dtype=torch.int8) for t in (q, k)]
    turned = torch.empty_like(v)
    narrow.append(torch.empty_like(turned, dtype=torch.int8))
    del smooth, turned
    return torch.empty_like(q)


def int8(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention that makes what comfy_kitchen's makes: 8 bits of all, its result, and a copy."""
    narrow = [torch.empty_like(t, dtype=torch.int8) for t in (q, k, v)]
    out = torch.empty_like(q).unflatten(2, (heads, -1))
    del narrow
    return out.clone().flatten(2)


@contextlib.contextmanager
def gpu_kernels() -> Iterator[None]:
    """Within it, the RMS norms of a model on the meta device are one kernel, as on CUDA."""

    def norm(x: Tensor, _shape: Any, weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
        return x * (eps if weight is None else weight.to(x.dtype))

    fused = mock.patch.object(layers, "norms_are_fused", lambda _device: True)
    with fused, mock.patch("torch.nn.functional.rms_norm", norm):
        yield


def flash_sdpa(q: Tensor, k: Tensor, v: Tensor, **_options: Any) -> Tensor:
    """`flash` with the call of PyTorch's own: q, k and v (B, heads, L, d)."""
    sums = torch.empty(q.shape[:-1], device=q.device)
    out = torch.empty_like(q)
    del sums
    return out


def forward_peak(
    config: ModelConfig,
    batch: int,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    text_rows: int = 512,
    attend: Attend = flash,
    rotate: Rotate = apply_rope,
    cache: BlockCache | None = None,
    run_block: RunBlock = run_directly,
) -> int:
    """Bytes alive at the peak of a forward that is not computed, beyond weights and inputs.

    size: latent frames, height, width.
    """
    model = SkyReelsModel(config, dtype=dtype, device="meta").requires_grad_(False)
    made = functools.partial(torch.empty, dtype=dtype, device="meta")
    x, timesteps = made(batch, config.in_dim, *size), made(batch, size[0], dtype=torch.float32)
    text = made(batch, text_rows, config.text_dim)
    image = made(batch, CLIP_TOKENS, CLIP_DIM) if config.model_type == "i2v" else None
    with torch.no_grad(), LiveBytes() as live:
        how = {"attend": attend, "rotate": rotate, "cache": cache, "run_block": run_block}
        model(x, timesteps, text, clip_fea=image, **how)
    return live.peak
