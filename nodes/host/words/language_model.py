"""Qwen's models in the host's memory management: streamed where they do not fit, and unloaded."""

from __future__ import annotations

import pathlib

import comfy.model_management
import comfy.model_patcher
import comfy.text_encoders
import torch
from torch import nn

from ....skyreels_model.words.network import Opened, Ways, open_model
from ....skyreels_model.words.qwen import QwenEngine
from .. import direct_reads
from ..sockets import quantized
from ..sockets.patcher import patcher_type
from .layers import FORMATS, Layers

# The host's copy of the vocabulary that all these models share.
TOKENIZER = pathlib.Path(comfy.text_encoders.__path__[0]) / "qwen25_tokenizer"


class HostLanguageModel(nn.Module):
    """The network below a module of its own: the host writes a `device` on what it holds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class HostEngine(QwenEngine):
    """An opened model in the host's patcher.

    unpacked_bytes: what a layer of it takes beside its weights while it is at work.
    """

    def __init__(
        self, opened: Opened, name: str, disable_dynamic: bool, unpacked_bytes: int = 0
    ) -> None:
        management, self._unpacked_bytes = comfy.model_management, unpacked_bytes
        self.patcher = patcher_type(disable_dynamic)(
            HostLanguageModel(opened.network),
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        super().__init__(opened, name)

    def _place(self, needed: int) -> torch.device:
        needed += self._unpacked_bytes
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)
        device: torch.device = self.patcher.load_device
        self.network.get_input_embeddings().compute_dtype = _compute_dtype(self.stored, device)
        return device

    @property
    def stored(self) -> torch.dtype:
        """The format of its norms, which are never packed."""
        dtypes = (p.dtype for n, p in self.network.named_parameters() if "layernorm" in n)
        return next(dtypes, torch.float32)


def _compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """float32 for such files, else bfloat16 where the device has it: float16 would overflow."""
    if stored != torch.float32 and comfy.model_management.should_use_bf16(device):
        return torch.bfloat16
    return torch.float32


def load_engine(
    path: pathlib.Path, disable_dynamic: bool = False, weight_format: str = FORMATS[0]
) -> tuple[HostEngine, str]:
    """A language model's file, or the first of its shards, as an engine, and what it is.

    weight_format: one of `FORMATS`, that plain weights of its layers are packed in.
    """
    layers = Layers(weight_format)
    ways = Ways(layers.replace, layers.make_readable, quantized.keeps_quantized, direct_reads.read)
    opened = open_model(path, TOKENIZER, ways)
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(opened.network)
    name = f"{opened.family.name} ({path.parent.name}/{path.name})"
    # The host's dynamic patcher knows no packed weights.
    engine = HostEngine(opened, name, disable_dynamic or layers.packed, layers.unpacked_bytes)
    engine.patcher.cached_patcher_init = (load_patcher, (path, weight_format))
    packed = f"; its layers packed in {weight_format}" if weight_format != FORMATS[0] else ""
    return engine, opened.report + packed


def load_patcher(
    path: pathlib.Path, weight_format: str, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of `load_engine`, for the host to build it again."""
    return load_engine(path, disable_dynamic, weight_format)[0].patcher
