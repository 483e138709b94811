"""JSON that keeps to a schema from its first token to its last, by the optional llguidance."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Between two signs of JSON. Without a bound a model may write white space till its tokens run out.
WHITE_SPACE = r"( |\n {0,24})?"


def can_constrain() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("llguidance") is not None


class Vocabulary:
    """A model's tokens as the package knows them, made once for a model: it takes a second."""

    def __init__(self, tokenizer: Any, size: int, ends: list[int]) -> None:
        from llguidance.hf import from_tokenizer

        self.size = size
        self.tokens = from_tokenizer(tokenizer, n_vocab=size, eos_token=ends)

    def keep_to(self, schema: Mapping[str, Any]) -> KeepTo:
        """What holds one answer to a schema."""
        return KeepTo(self, schema)


class KeepTo:
    """Scores (1, V) to scores in which only tokens are possible that go on with such JSON.

    For one answer. Raises ValueError for a schema that the package does not know.
    """

    def __init__(self, vocabulary: Vocabulary, schema: Mapping[str, Any]) -> None:
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(
            json.dumps(schema), overrides={"whitespace_pattern": WHITE_SPACE}
        )
        self._matcher = LLMatcher(vocabulary.tokens, grammar, log_level=0)
        if self._matcher.is_error():
            raise ValueError(f"the answer's schema is not read: {self._matcher.get_error()}")
        self._size, self._seen = vocabulary.size, 0

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        # The first time, all of them are the question's.
        for token in tokens[0, self._seen :].tolist() if self._seen else ():
            self._matcher.consume_token(token)
        self._seen = tokens.shape[1]
        possible = bytearray(self._matcher.compute_logit_bias())
        if self._matcher.is_error():
            return scores  # what is written from here on is read as any other answer
        mask = torch.frombuffer(possible, dtype=torch.uint8)[: self._size].bool()
        return scores.masked_fill(~mask.to(scores.device), -torch.inf)
