"""The host's CLIP as an engine, where its model writes text: Qwen3-VL, Qwen3.5, Gemma."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ....skyreels_model.words import Message, OnToken, Sampling
from ....skyreels_model.words.chat import defuse
from ....skyreels_model.words.pieces import Pieces

NOT_ASKED = (
    "this CLIP does not write text (a film's UMT5 only reads prompts); load Qwen3-VL, Qwen3.5 or "
    "Gemma with ComfyUI's Load CLIP, or use SkyReels-V2 Language Model Loader"
)


class CLIPEngine:
    """A text-generating CLIP. It has one turn: system and user text become one.

    Raises ValueError for a CLIP that does not write text.
    """

    constrains_json = False

    def __init__(self, clip: Any) -> None:
        transformer = _find_writer(clip)
        if transformer is None:
            raise ValueError(NOT_ASKED)
        self.clip, self.transformer = clip, transformer
        self.name = f"the CLIP ({type(transformer).__name__.rstrip('_')})"
        self.sees_pictures = hasattr(transformer, "preprocess_embed")

    def generate(self, messages: Sequence[Message], sampling: Sampling, on_token: OnToken) -> str:
        text = "\n\n".join(defuse(message.text) for message in messages if message.text)
        seen = [_as_images(m.pictures) for m in messages if m.pictures is not None]
        tokens = self.clip.tokenize(
            text, image=_join(seen), skip_template=False, min_length=1, thinking=False
        )
        self._load(tokens, sampling)
        written, text = Pieces(self.clip.decode), ""

        def take(token: int) -> None:
            nonlocal text
            piece = written.add(token)
            text += piece
            on_token(piece)
            if any(stop in text for stop in sampling.stop):
                raise _StopFound

        try:
            with _listen(self.transformer, take):
                self._write(tokens, sampling)
        except _StopFound:
            return text[: min(text.find(stop) for stop in sampling.stop if stop in text)]
        return text + written.flush()

    def _write(self, tokens: Any, sampling: Sampling) -> None:
        self.clip.generate(
            tokens,
            do_sample=sampling.temperature > 0,
            max_length=sampling.max_tokens,
            temperature=sampling.temperature or 1.0,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=0.0,
            repetition_penalty=sampling.repetition_penalty,
            seed=sampling.seed,
        )

    def _load(self, tokens: Any, sampling: Sampling) -> None:
        """With room for keys and values, of which the host's own call says nothing."""
        length = max(len(batch) for batches in tokens.values() for batch in batches)
        needed = _cache_bytes(self.transformer, length + sampling.max_tokens)
        comfy.model_management.load_models_gpu([self.clip.patcher], memory_required=needed)


class _StopFound(Exception):
    """Ends the writing where a stop text stands."""


def _find_writer(clip: Any) -> nn.Module | None:
    """The network inside that writes; None where there is none, or it knows no end."""
    model = getattr(clip, "cond_stage_model", None)
    if not isinstance(model, nn.Module) or not hasattr(clip, "generate"):
        return None
    for module in model.modules():
        network = getattr(module, "transformer", None)
        writes = isinstance(network, nn.Module) and hasattr(network, "generate")
        inner = getattr(network, "model", None)
        # Without stop tokens it is a model that the host only reads with.
        if writes and hasattr(getattr(inner, "config", None), "stop_tokens"):
            return network
    return None


@contextmanager
def _listen(transformer: nn.Module, take: Any) -> Iterator[None]:
    """Hand each token to `take` when it is drawn; the host gives them only when all are there."""
    original, stops = transformer.sample_token, set(transformer.model.config.stop_tokens)

    def draw(*args: Any, **kwargs: Any) -> Tensor:
        drawn: Tensor = original(*args, **kwargs)
        token = int(drawn.flatten()[0])
        if token not in stops:
            take(token)
        return drawn

    transformer.sample_token = draw
    try:
        yield
    finally:
        del transformer.sample_token


def _cache_bytes(transformer: nn.Module, length: int) -> int:
    """Keys and values of so many tokens, in the widest format that the host computes in."""
    config = transformer.model.config
    names = ("num_hidden_layers", "num_key_value_heads", "head_dim")
    sizes = [getattr(config, name, 0) for name in names]
    return 2 * length * sizes[0] * sizes[1] * sizes[2] * torch.float32.itemsize


def _as_images(pictures: Tensor) -> Tensor:
    """Pictures (n, H, W, 3) as the host's IMAGE, floats in 0..1."""
    floats = pictures.float()
    return floats / 255 if pictures.dtype == torch.uint8 else floats


def _join(pictures: list[Tensor]) -> Tensor | None:
    """All pictures as one batch, those of another size fitted to the first."""
    if not pictures:
        return None
    size = pictures[0].shape[1:3]
    fitted = [
        p
        if p.shape[1:3] == size
        else nn.functional.interpolate(
            p.movedim(-1, 1), tuple(size), mode="bicubic", antialias=True
        )
        .movedim(1, -1)
        .clamp(0, 1)
        for p in pictures
    ]
    return torch.cat(fitted)
