"""Our UMT5 as the host's CLIP: CLIPTextEncode and every node after it work with it."""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.sd1_clip import escape_important, token_weights, unescape_important
from comfy.supported_models_base import ClipTarget
from torch import Tensor, nn

from ....skyreels_model.files import loading
from ....skyreels_model.files.quantized import Weights
from ....skyreels_model.model import identity
from ....skyreels_model.operations import Unfilled
from ....skyreels_model.rules import refusal
from ....skyreels_model.text_encoder.config import UMT5Config
from ....skyreels_model.text_encoder.memory import forward_bytes
from ....skyreels_model.text_encoder.names import to_original_names
from ....skyreels_model.text_encoder.network import UMT5Encoder
from ....skyreels_model.text_encoder.tokenizer import MAX_LENGTH, PAD_ID, Tokenizer, clean_text
from .. import direct_reads, files
from . import quantized
from .gguf import GGUFLinear
from .memory import try_alone
from .patcher import hook_on_the_fly

NAME = "umt5xxl"
COMPUTE = torch.float32  # T5's activations overflow half precision
TOKENIZER_FOLDERS = ("google/umt5-xxl", "umt5-xxl", "tokenizer", ".")

# What to change where the text encoder alone lacks memory.
WITHOUT_ROOM = (
    "Use a file of it in fp8 or GGUF, or ComfyUI's Load CLIP with device cpu, or close what else "
    "uses the memory"
)

LOG = logging.getLogger("skyreels_v2")

TokenWeights = list[tuple[int, float]]


class HostTokenizer:
    """Prompt to weighted tokens, with the host's (word:1.2) syntax and the reference's cleaning."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, cleaned: bool = False, **_kwargs: Any
    ) -> dict[str, list[list[tuple[Any, ...]]]]:
        text = text if cleaned else clean_text(text)
        segments = token_weights(escape_important(text), 1.0)
        pairs: TokenWeights = []
        for part, weight in segments:
            if not math.isfinite(weight):
                raise refusal("the weight of a part of the text", weight, "a finite number, 0 to 2")
            *pieces, eos = self.tokenizer.encode(unescape_important(part))
            pairs += [(piece, weight) for piece in pieces]
        if not segments:
            eos = self.tokenizer.encode("")[-1]
        pairs.append((eos, 1.0))
        if len(pairs) > MAX_LENGTH:
            plain = unescape_important("".join(part for part, _ in segments))
            # Refuses, showing where the text would be cut.
            self.tokenizer.tokenize([plain], on_long="error")
            raise ValueError(
                f"{len(pairs)} tokens; at most {MAX_LENGTH} are read: use fewer weights"
            )
        if return_word_ids:
            return {NAME: [[(*pair, i) for i, pair in enumerate(pairs)]]}
        return {NAME: [list(pairs)]}

    def untokenize(self, pairs: TokenWeights) -> list[tuple[tuple[int, float], str]]:
        return [(pair, str(pair[0])) for pair in pairs]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class HostTextEncoder(nn.Module):
    """What the host's CLIP calls: weighted tokens to (1, 512, dim), zero rows after the text."""

    def __init__(
        self, config: UMT5Config, dtype: torch.dtype, linear: type[nn.Module] | None
    ) -> None:
        super().__init__()
        operations: Any = comfy.ops.manual_cast
        if linear is not None:
            operations = type("Operations", (operations,), {"Linear": linear})
        self.transformer = UMT5Encoder(config, operations, dtype=dtype, device="meta")
        self.dtype, self.dtypes = dtype, {dtype}
        self.execution_device: torch.device | None = None

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.execution_device = options.get("execution_device", self.execution_device)

    def reset_clip_options(self) -> None:
        self.execution_device = None

    def memory_estimation_function(
        self, tokens: Mapping[str, Sequence[Sequence[Any]]], device: Any = None
    ) -> int:
        """Bytes that encoding takes beside the weights; the host frees as much before it begins."""
        length = max(map(len, tokens.get(NAME, ())), default=MAX_LENGTH)
        config, casts = self.transformer.config, self.dtype != COMPUTE
        return forward_bytes(config, 1, length, COMPUTE.itemsize, casts)

    def encode_token_weights(self, tokens: dict[str, list[list[Any]]]) -> tuple[Tensor, None]:
        pairs = tokens[NAME][0]
        out = self._encode([token[0] for token in pairs])
        weights = torch.tensor([float(token[1]) for token in pairs])
        if (weights != 1).any():
            # The host's rule: away from the embedding of an empty prompt.
            empty = self._encode([pairs[-1][0]])
            emphasis = torch.ones(MAX_LENGTH)
            emphasis[: len(pairs)] = weights
            out = (out - empty) * emphasis.to(out)[None, :, None] + empty
            out[:, len(pairs) :] = 0
        return out.to(comfy.model_management.intermediate_device()), None

    def _encode(self, ids: list[int]) -> Tensor:
        padded = torch.tensor([ids + [PAD_ID] * (MAX_LENGTH - len(ids))])
        mask = torch.arange(MAX_LENGTH)[None] < len(ids)
        device = self.execution_device or next(self.parameters()).device
        return self.transformer(padded.to(device), mask.to(device), dtype=COMPUTE)

    def load_sd(self, weights: Weights) -> tuple[list[str], list[str]]:
        layout = UMT5Encoder(self.transformer.config, Unfilled, dtype=self.dtype, device="meta")
        kept = quantized.keeps_quantized(self.transformer)
        self.report = loading.load_weights(self.transformer, weights, layout, kept)
        return [], self.report.unexpected


def load_clip(path: pathlib.Path, disable_dynamic: bool = False) -> tuple[comfy.sd.CLIP, str]:
    """A text encoder file as the host's CLIP, and one line that says what it is."""
    file = direct_reads.read(path)
    original = to_original_names(file.tensors, file.metadata)
    weights, note = quantized.make_readable(original)
    config, stored = UMT5Config.from_state_dict(weights), loading.stored_dtype(weights)
    packed, linear = quantized.is_gguf(weights), None
    if packed:
        # Its embedding, a third of it, becomes numbers.
        stored, linear = torch.bfloat16, GGUFLinear
    elif any(not isinstance(weight, Tensor) for weight in weights.values()):
        # Exact: T5's activations have outliers that products of fp8 numbers would lose.
        linear = quantized.scaled_linear(stored, exact=True)
    tokenizer = find_tokenizer(path, file.tensors)

    def encoder(
        device: Any = None, dtype: Any = stored, model_options: Any = None
    ) -> HostTextEncoder:
        return HostTextEncoder(config, stored, linear)

    clip = comfy.sd.CLIP(
        ClipTarget(lambda **_kwargs: HostTokenizer(tokenizer), encoder),
        parameters=identity.parameters(weights),
        state_dict=[weights],
        model_options={"dtype": stored},
        disable_dynamic=disable_dynamic or packed,
    )
    if linear is not None:
        hook_on_the_fly(clip.patcher)
    clip.patcher.cached_patcher_init = (load_patcher, (path,))
    return clip, file.add_note(
        f"UMT5 of width {config.dim}, {config.num_layers} layers, stored {str(stored)[6:]}, "
        f"quantised {loading.quantization(original)}{note}; {clip.cond_stage_model.report}"
    )


def load_patcher(
    path: pathlib.Path, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher of `load_clip`, for the host to build it again."""
    return load_clip(path, disable_dynamic)[0].patcher


def find_tokenizer(path: pathlib.Path, tensors: dict[str, Tensor]) -> Tokenizer:
    """The tokenizer inside the file, or in one of the published folders beside it."""
    if isinstance(tensors.get("spiece_model"), Tensor):
        return Tokenizer(tensors["spiece_model"].numpy().tobytes())
    folders = [path.parent / name for name in TOKENIZER_FOLDERS]
    if not files.is_models_folder(path.parent):
        # Where a -Diffusers repository has it, beside the folder of the encoder.
        folders.append(path.parent.parent / "tokenizer")
    for folder in folders:
        file = folder / "spiece.model"
        if file.is_file():
            try:
                return Tokenizer.from_folder(folder)
            except ValueError as error:
                raise ValueError(f"its tokenizer, {file}, cannot be used: {error}") from error
    raise ValueError(
        f"{path.name} has no tokenizer inside and none beside it; put the checkpoint's folder "
        f"google/umt5-xxl (with spiece.model) into {path.parent}, or use umt5_xxl_fp16.safetensors"
    )


def encode_prompt(clip: comfy.sd.CLIP, name: str, text: str) -> list[Any]:
    """A literal prompt as the host's CONDITIONING; `name` is the input's, for messages.

    Raises ValueError when it is longer than the model reads; an empty prompt is only warned about.
    """
    text = clean_text(text)
    if not text and name == "prompt":
        LOG.warning("The prompt is empty: the film will show whatever the model makes up.")
    # Escaped, since brackets in a prose prompt are prose; the host's syntax is CLIPTextEncode's.
    literal = text.replace("(", "\\(").replace(")", "\\)")
    try:
        # Ours would clean it once more, which is not the same where what is left looks like HTML.
        ours = isinstance(getattr(clip, "tokenizer", None), HostTokenizer)
        tokens = clip.tokenize(literal, **({"cleaned": True} if ours else {}))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    length = max(len(batch) for batches in tokens.values() for batch in batches)
    if length > MAX_LENGTH:
        raise ValueError(
            f"{name}: the text is {length} tokens long; at most {MAX_LENGTH} fit: shorten it by "
            f"{length - MAX_LENGTH}"
        )
    return try_alone(
        "text encoder", WITHOUT_ROOM, lambda: clip.encode_from_tokens_scheduled(tokens)
    )
