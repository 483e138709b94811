"""Qwen's models in the host's memory management: streamed where they do not fit, and unloaded."""

from __future__ import annotations

import pathlib
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.text_encoders
import torch
from torch import Tensor, nn

from ....skyreels_model.words.network import Opened, Ways, open_model
from ....skyreels_model.words.qwen import QwenEngine
from .. import direct_reads
from ..sockets import quantized
from ..sockets.patcher import patcher_type

# The host's copy of the vocabulary that all these models share.
TOKENIZER = pathlib.Path(comfy.text_encoders.__path__[0]) / "qwen25_tokenizer"


class HostEmbedding(comfy.ops.manual_cast.Embedding):
    """An embedding in the format that the model computes in, whatever it is stored as."""

    compute_dtype = torch.float32

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = super().forward(ids, out_dtype=self.compute_dtype)
        return out.to(self.compute_dtype)

    def project(self, x: Tensor) -> Tensor:
        """Scores of all words for x (…, D), by the same weight."""
        weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
        out = nn.functional.linear(x, weight)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out


class HostRMSNorm(nn.Module, comfy.ops.CastWeightBiasOp):
    """Qwen's norm, in float32 and then in the input's format, with a weight that the host moves."""

    comfy_cast_weights = True
    bias = None

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, device="meta"), requires_grad=False)
        self.epsilon = epsilon
        self.weight_function: list[Any] = []
        self.bias_function: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        floats = x.float()
        normed = floats * torch.rsqrt(floats.pow(2).mean(-1, keepdim=True) + self.epsilon)
        weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
        out = weight * normed.to(x.dtype)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return out


class HostLanguageModel(nn.Module):
    """The network below a module of its own: the host writes a `device` on what it holds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class HostEngine(QwenEngine):
    """An opened model in the host's patcher."""

    def __init__(self, opened: Opened, name: str, disable_dynamic: bool) -> None:
        management = comfy.model_management
        self.patcher = patcher_type(disable_dynamic)(
            HostLanguageModel(opened.network),
            load_device=management.text_encoder_device(),
            offload_device=management.text_encoder_offload_device(),
        )
        super().__init__(opened, name, self._bring)

    def _bring(self, needed: int) -> torch.device:
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


def load_engine(path: pathlib.Path, disable_dynamic: bool = False) -> tuple[HostEngine, str]:
    """A language model's file, or the first of its shards, as an engine, and what it is."""
    linear: list[type[nn.Module]] = []

    def readable(weights: dict[str, Any]) -> dict[str, Any]:
        if quantized.is_gguf(weights):
            raise ValueError("it is a GGUF file; take a safetensors file, or serve it")
        made, _note = quantized.make_readable(weights)
        packed = any(not isinstance(weight, Tensor) for weight in made.values())
        linear.append(
            quantized.scaled_linear(torch.bfloat16) if packed else comfy.ops.manual_cast.Linear
        )
        return made

    def replace(layer: nn.Module) -> nn.Module | None:
        return _host_layer(layer, linear[0])

    ways = Ways(replace, readable, quantized.keeps_quantized, direct_reads.read)
    opened = open_model(path, TOKENIZER, ways)
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(opened.network)
    name = f"{opened.family.name} ({path.parent.name}/{path.name})"
    engine = HostEngine(opened, name, disable_dynamic)
    engine.patcher.cached_patcher_init = (load_patcher, (path,))
    return engine, opened.report


def load_patcher(
    path: pathlib.Path, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of `load_engine`, for the host to build it again."""
    return load_engine(path, disable_dynamic)[0].patcher


def _host_layer(layer: nn.Module, linear: type[nn.Module]) -> nn.Module | None:
    """The host's layer for one of the network's, None for what has no weights of its own."""
    if isinstance(layer, nn.Linear):
        return linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    if isinstance(layer, nn.Embedding):
        return HostEmbedding(layer.num_embeddings, layer.embedding_dim, device="meta")
    if isinstance(layer, nn.Conv3d):
        return comfy.ops.manual_cast.Conv3d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            bias=layer.bias is not None,
            device="meta",
        )
    if type(layer).__name__.endswith("RMSNorm"):
        return HostRMSNorm(layer.weight.shape[0], layer.variance_epsilon)
    return None
