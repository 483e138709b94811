"""Prompts to UMT5 token ids: the reference's cleaning, sentencepiece, padding to 512."""

from __future__ import annotations

import functools
import html
import logging
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

MAX_LENGTH = 512
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
SHOWN_CHARACTERS = 80
_EMPTY_LINES = re.compile(r"\n[ \t\r\n]*\n")

logger = logging.getLogger("skyreels_v2")


def clean_text(text: str) -> str:
    """A prompt as the text encoder saw it in training: mended, unescaped, single spaces.

    Mojibake and typographic characters are mended by ftfy (curly quotes and full-width forms
    become plain ones), HTML entities are unescaped twice, every run of whitespace becomes one
    space, none at the ends. Without ftfy that one step is skipped, with a warning.
    Source: SkyworkAI/SkyReels-V2 skyreels_v2_infer/modules/tokenizers.py, mode "whitespace".
    """
    # A mender goes line by line, and takes its time for empty ones, too.
    mended = _text_mender()(_EMPTY_LINES.sub("\n", text))
    return " ".join(html.unescape(html.unescape(mended)).split())


@functools.cache
def _text_mender() -> Callable[[str], str]:
    """ftfy.fix_text, or the identity; cached so that a missing ftfy is reported once."""
    try:
        import ftfy
    except ImportError:
        logger.warning(
            "ftfy is not installed: prompts with curly quotes, full-width punctuation or broken "
            "characters are encoded as they are, unlike the reference (pip install ftfy)"
        )
        return str
    return ftfy.fix_text


class Tokenizer:
    """UMT5's sentencepiece tokenizer: pieces, then the end token 1; padding 0, unknown 2.

    Text is never read as a control token: a typed "</s>", "<pad>" or "<unk>" is tokenized letter
    by letter, where transformers' tokenizers put the token itself. On purpose: a prompt that ends
    or pads itself half-way is nothing the encoder was trained on, and what is written is what is
    encoded; ComfyUI's own UMT5 does the same. Sentinels such as "<extra_id_0>" are whatever the
    model file makes of them. All other clean text gives the ids of transformers' T5Tokenizer.
    """

    def __init__(self, model_proto: bytes) -> None:
        """From the bytes of `spiece.model`, which ComfyUI's files embed as `spiece_model`.

        Raises ValueError when they are not a sentencepiece model with UMT5's special ids.
        """
        import sentencepiece

        if not model_proto:
            raise ValueError("model_proto is 0 bytes; it must be the content of spiece.model")
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
        except RuntimeError as error:
            raise ValueError(
                f"model_proto is {len(model_proto)} bytes that are not a sentencepiece model; "
                "it must be the content of umt5-xxl's spiece.model"
            ) from error
        found = self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id()
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(
                f"model_proto has ids (pad, eos, unk) = {found}; UMT5 has "
                f"{(PAD_ID, EOS_ID, UNK_ID)}: this is another model's tokenizer"
            )

    @classmethod
    def from_folder(cls, path: str | pathlib.Path) -> Tokenizer:
        """From the published folder google/umt5-xxl, of which only `spiece.model` is read.

        Raises ValueError, with what the folder holds instead, when that file is not there.
        """
        folder = pathlib.Path(path)
        if not folder.is_dir():
            raise ValueError(f"path is '{folder}', not a folder; it must be google/umt5-xxl")
        file = folder / "spiece.model"
        if file.is_file():
            return cls(file.read_bytes())
        if (folder / "tokenizer.json").is_file():
            raise ValueError(
                f"path is '{folder}', which has tokenizer.json but not spiece.model; "
                "take both from google/umt5-xxl"
            )
        held = sorted(entry.name for entry in folder.iterdir())[:5]
        raise ValueError(f"path is '{folder}', which has no spiece.model; it holds {held}")

    @property
    def vocab_size(self) -> int:
        """Number of pieces; the encoder's vocabulary is at least that, rounded up."""
        return self._pieces.vocab_size()

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it is (see `clean_text`), with the end token."""
        return [*self._pieces.encode(text), EOS_ID]

    def tokenize(
        self,
        texts: Sequence[str],
        max_length: int = MAX_LENGTH,
        on_long: Literal["error", "truncate"] = "error",
    ) -> tuple[Tensor, Tensor]:
        """Ids (B, max_length) int64, padded with 0, and their mask (B, max_length) bool.

        `max_length` counts the end token. A longer text is a ValueError that shows what would be
        lost; with `on_long="truncate"` it keeps its first `max_length` - 1 tokens and the end
        token, as in the reference, and the loss is logged.
        """
        if isinstance(texts, str):
            raise ValueError(f"texts is one string, {texts[:20]!r}; it must be a list of strings")
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; it must be at least 1; nearest: 1")
        if on_long not in ("error", "truncate"):
            raise ValueError(f"on_long is {on_long!r}; it must be 'error' or 'truncate'")
        ids = torch.full((len(texts), max_length), PAD_ID, dtype=torch.int64)
        mask = torch.zeros((len(texts), max_length), dtype=torch.bool)
        for row, text in enumerate(texts):
            tokens = self._fit(self.encode(text), max_length, on_long)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return ids, mask

    def _fit(self, tokens: list[int], max_length: int, on_long: str) -> list[int]:
        """The tokens if they fit; else an error, or their head with the end token."""
        if len(tokens) <= max_length:
            return tokens
        cut = self._pieces.decode(tokens[max_length - 1 : -1])
        shown = cut if len(cut) <= SHOWN_CHARACTERS else cut[:SHOWN_CHARACTERS] + "..."
        excess = (
            f"the text is {len(tokens)} tokens long; at most {max_length} fit (the end token "
            f"counts): {len(tokens) - max_length} too many, from {shown!r} on"
        )
        if on_long == "error":
            raise ValueError(f"{excess}; shorten it by that much")
        logger.warning("%s: cut off", excess)
        return [*tokens[: max_length - 1], EOS_ID]
