"""Qwen's models as an engine: a conversation to tokens, tokens to an answer as they come."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .chat import END, write_chat
from .draw import make_processors
from .engine import Message, OnToken, Sampling
from .grammar import KeepTo, Vocabulary, can_constrain
from .network import Opened
from .pieces import Pieces
from .vision import Patching, cut_patches

ENDS = (END, "<|endoftext|>")


@dataclass(frozen=True)
class _Seen:
    """What the vision tower is given of all messages, and the tokens that each picture takes."""

    inputs: dict[str, Tensor]
    pads: list[list[int]]


class QwenEngine:
    """An opened model that answers, where its weights lie."""

    def __init__(self, opened: Opened, name: str) -> None:
        self.network, self.tokenizer, self.family = opened.network, opened.tokenizer, opened.family
        self.name, self.sees_pictures = name, opened.family.sees
        self.constrains_json = can_constrain() and self.tokenizer.is_fast

    @torch.inference_mode()
    def generate(self, messages: Sequence[Message], sampling: Sampling, on_token: OnToken) -> str:
        seen = self._look(messages)
        chat = write_chat(messages, seen.pads, self.family.system, self.family.opening)
        ids = self.tokenizer(chat, add_special_tokens=False, return_tensors="pt").input_ids
        self._check_length(ids.shape[1], sampling)
        device = self._place(self.answer_bytes(ids.shape[1] + sampling.max_tokens, seen.inputs))
        self._move_buffers(device)
        listener = _Listener(self._decode, self._ends(), sampling.stop, on_token)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **seen.inputs}
        try:
            # Weights that are streamed are elsewhere until they are used, and that is warned of.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="You are calling .generate\\(\\) with")
                self.network.generate(
                    **{key: value.to(device) for key, value in inputs.items()},
                    generation_config=self._settings(sampling),
                    logits_processor=make_processors(sampling, self._constrain(sampling)),
                    streamer=listener,
                )
        except _StopFound:
            pass
        finally:
            self._forget_positions()
        return listener.finish()

    def _place(self, needed: int) -> torch.device:
        """Bring the network to where it computes; `needed`: bytes of an answer beside it."""
        return next(self.network.parameters()).device

    def _constrain(self, sampling: Sampling) -> list[KeepTo]:
        if sampling.schema is None or not self.constrains_json:
            return []
        return [self._vocabulary.keep_to(sampling.schema)]

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        size = self.network.config.get_text_config().vocab_size
        return Vocabulary(self.tokenizer, size, sorted(self._ends()))

    def answer_bytes(self, length: int, seen: dict[str, Tensor]) -> int:
        """Bytes beside the weights for so many tokens: keys, values, one forward, scores."""
        config, size = self.network.config.get_text_config(), torch.float32.itemsize
        width, heads = config.hidden_size, config.num_attention_heads
        head = getattr(config, "head_dim", None) or width // heads
        kept = 2 * config.num_hidden_layers * config.num_key_value_heads * head
        worked = 6 * config.hidden_size + 3 * config.intermediate_size
        scores = 6 * config.vocab_size
        patches = sum(v.shape[0] for k, v in seen.items() if k.startswith("pixel"))
        if patches:
            vision = self.network.config.vision_config
            patches *= 12 * vision.hidden_size + 3 * vision.intermediate_size
        return size * (length * (kept + worked) + scores + patches)

    def _look(self, messages: Sequence[Message]) -> _Seen:
        inputs: dict[str, list[Any]] = {}
        pads: list[list[int]] = []
        for message in messages:
            pads.append([])
            if message.pictures is None:
                continue
            how, is_clip = self._patching(), message.fps is not None
            rows, grids = cut_patches(message.pictures, is_clip, how)
            pads[-1] = [t * h * w // how.merged for t, h, w in grids]
            kind, suffix = ("video", "_videos") if is_clip else ("image", "")
            inputs.setdefault(f"pixel_values{suffix}", []).append(rows)
            inputs.setdefault(f"{kind}_grid_thw", []).append(torch.tensor(grids))
            if message.fps is not None:
                seconds = torch.tensor([how.frames / message.fps])
                inputs.setdefault("second_per_grid_ts", []).append(seconds)
        return _Seen({key: torch.cat(parts) for key, parts in inputs.items()}, pads)

    def _patching(self) -> Patching:
        vision = self.network.config.vision_config
        return Patching(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)

    def _check_length(self, length: int, sampling: Sampling) -> None:
        most = self.network.config.get_text_config().max_position_embeddings
        if length + sampling.max_tokens > most:
            raise ValueError(
                f"{self.name} is asked with {length} tokens for an answer of up to "
                f"{sampling.max_tokens}; both together must be at most {most}: shorten the text, "
                f"or give fewer or smaller pictures"
            )

    def _settings(self, sampling: Sampling) -> Any:
        from transformers import GenerationConfig

        ends = sorted(self._ends())
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,  # the processors draw
            eos_token_id=ends,
            pad_token_id=ends[0],
            use_cache=True,
        )

    def _ends(self) -> set[int]:
        known = self.tokenizer.get_vocab()
        return {known[end] for end in ENDS if end in known}

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _move_buffers(self, device: torch.device) -> None:
        """Tables of positions, which a host leaves behind where it streams the weights."""
        for module in self.network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    def _forget_positions(self) -> None:
        """What the network remembers of the last conversation's pictures."""
        for module in self.network.modules():
            if getattr(module, "rope_deltas", None) is not None:
                module.rope_deltas = None


class _StopFound(Exception):
    """Ends the writing where a stop text stands."""


class _Listener:
    """What transformers hands each token to, the prompt's all at once before them."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        ends: set[int],
        stops: Sequence[str],
        on_token: OnToken,
    ) -> None:
        self._pieces, self._ends = Pieces(decode), ends
        self._stops, self._on_token = stops, on_token
        self._prompt, self._text, self._stopped = True, "", False

    def put(self, tokens: Tensor) -> None:
        if self._prompt:
            self._prompt = False
            return
        token = int(tokens.flatten()[-1])
        if token in self._ends:
            return
        piece = self._pieces.add(token)
        self._text += piece
        self._on_token(piece)
        if any(stop in self._text for stop in self._stops):
            self._stopped = True
            raise _StopFound

    def end(self) -> None:
        """Nothing: `finish` gives the text."""

    def finish(self) -> str:
        """The whole answer, up to the first stop text."""
        if not self._stopped:
            return self._text + self._pieces.flush()
        return self._text[: min(self._text.find(s) for s in self._stops if s in self._text)]
