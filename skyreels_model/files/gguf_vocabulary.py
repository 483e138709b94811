"""The vocabulary in a GGUF file's metadata as the SentencePiece model that it was made from.

Sources: sentencepiece_model.proto (google/sentencepiece), whose messages are written here, and the
names of tokenizers in ggml's GGUF specification.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MODEL = "tokenizer.ggml.model"
_UNIGRAM = 1
# Fields of a message by number, with how each is encoded.
_VARINT, _BYTES, _FLOAT = 0, 2, 5
_IDS = {"unknown": 40, "bos": 41, "eos": 42, "padding": 43}
_NO_ID = (1 << 64) - 1  # -1: the vocabulary has no such token


def sentencepiece_model(fields: Mapping[str, Any]) -> Tensor:
    """The content of `spiece.model`, uint8 (N,), from the fields of the package's reader.

    Raises KeyError or ValueError where a part of the vocabulary is not there.
    """

    def content(name: str, default: Any) -> Any:
        field = fields.get(f"tokenizer.ggml.{name}")
        return default if field is None else field.contents()

    tokens = fields["tokenizer.ggml.tokens"].contents()
    scores, kinds = content("scores", []), content("token_type", [])
    if not len(tokens) == len(scores) == len(kinds):
        raise ValueError(
            f"its vocabulary has {len(tokens)} tokens, {len(scores)} scores and {len(kinds)} kinds"
        )
    pieces = b"".join(
        _bytes(1, _bytes(1, token.encode()) + _float(2, score) + _number(3, kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    ids = {name: content(f"{name}_token_id", None) for name in _IDS}
    ids = {name: _NO_ID if value is None else value for name, value in ids.items()}
    trainer = _number(3, _UNIGRAM) + b"".join(_number(_IDS[name], ids[name]) for name in _IDS)
    normalizer = _bytes(2, bytes(content("precompiled_charsmap", [])))
    normalizer += _number(3, int(content("add_space_prefix", True)))
    normalizer += _number(4, int(content("remove_extra_whitespaces", True)))
    normalizer += _number(5, 1)  # spaces become the mark that the pieces begin with
    whole = pieces + _bytes(2, trainer) + _bytes(3, normalizer)
    return torch.frombuffer(bytearray(whole), dtype=torch.uint8)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FLOAT) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value
