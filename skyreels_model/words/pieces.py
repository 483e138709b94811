"""Tokens to text as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder shows where a letter's bytes are missing
MOST_TOKENS = 32  # that are decoded again for each new one


class Pieces:
    """The text that each token adds; letters of several tokens come with their last.

    The pieces of all tokens, and `flush` at the end, add up to the decoded text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._told = 0  # characters of these tokens' text

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if text.endswith(UNFINISHED):
            return ""
        piece = text[self._told :]
        self._told = len(text)
        if len(self._tokens) > MOST_TOKENS and text[-1:].isspace():
            self._tokens, self._told = [], 0
        return piece

    def flush(self) -> str:
        """What is left when no token follows."""
        piece = self._decode(self._tokens)[self._told :]
        self._tokens, self._told = [], 0
        return piece
