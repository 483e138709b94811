"""A short prompt to a long one, in the manner of the captions that the model was trained on."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..plan.bounds import BOUNDS
from ..plan.storyboard import (
    TimedPrompt,
    is_storyboard,
    parse_storyboard,
    write_storyboard,
)
from ..rules import require_choice, require_whole
from .ask import Answer, NoAnswerError
from .engine import Message, Sampling

FILE = pathlib.Path(__file__).with_name("enhancer.md")
LANGUAGES = ("english", "as written")
PARTS = ("task", *LANGUAGES, "picture", "after a shot", "after a cut")
LONG = 60  # words of a prompt that says enough
MOST_WORDS = 350  # that the text encoder surely reads
MOST_TOKENS = 640

Ask = Callable[[Sequence[Message], Sampling], Answer]

_FENCE = re.compile(r"```\w*")
_BOLD = re.compile(r"\*\*|__|^#+\s*", re.MULTILINE)
_LABEL = re.compile(
    r"\A(?:(?:enhanced|long|video|example)\s+)?(?:prompt|answer|caption)\s*:\s*", re.I
)
_OPENING = re.compile(r"\A(?:sure|certainly|of course|here(?:'s| is| are))\b[^\n]*:\s*\n", re.I)
# From the first of its points on only, so that long texts without an end take no time.
_SENTENCE_END = re.compile(
    r"(?:(?<![.!?\u2026])[.!?\u2026]+[\"'\u201d\u2019)]*(?=\s|\Z)|[\u3002\uff01\uff1f])\s*"
)
# Kana, Chinese characters and Hangul.
_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u00ab": "\u00bb", "\u300c": "\u300d"}
_NEARLY_A_MARK = re.compile(r"\s*/\s*(?=-?[\d.,])|\s/\s")


@dataclass(frozen=True)
class Enhancer:
    """How prompts are written out.

    language: of the answer. long_words: prompts of as many words stay as they are, 0: none do.
    sampling: how the words are drawn. picture: (1, H, W, 3), the first frame of the first shot.
    previous: the shot before, or nothing.
    """

    language: str = "english"
    long_words: int = LONG
    sampling: Sampling = Sampling(MOST_TOKENS, top_p=0.9, repetition_penalty=1.05)
    picture: Tensor | None = None
    previous: str = ""

    def __post_init__(self) -> None:
        require_choice("language", self.language, LANGUAGES)
        require_whole("long_words", self.long_words, 0, 10000)

    def enhance(self, text: str, ask: Ask) -> str:
        """A prompt, or a storyboard's text shot by shot, written out; of the same form.

        Raises ValueError for an empty prompt, NoAnswerError for an answer without words, and what
        `parse_storyboard` and `ask` raise.
        """
        if not is_storyboard(text):
            return self._enhance_shot(text, self.previous, False, ask)
        shots = _read_storyboard(text)
        written: list[TimedPrompt] = []
        for shot in shots:
            previous = written[-1].prompt if written else self.previous
            # The picture is where the film begins, not where its other shots do.
            this = self if not written else replace(self, picture=None)
            prompt = this._enhance_shot(shot.prompt, previous, shot.cut, ask)
            written.append(replace(shot, prompt=_NEARLY_A_MARK.sub(", ", prompt)))
        return write_storyboard(written)

    def _enhance_shot(self, prompt: str, previous: str, cut: bool, ask: Ask) -> str:
        prompt = prompt.strip()
        if not prompt and self.picture is None:
            raise ValueError("prompt is empty; it must say what the film shows, in a few words")
        if self.long_words and count_words(prompt) >= self.long_words:
            return prompt
        answer = ask(self._messages(prompt, previous, cut), self.sampling)
        written = tidy_prompt(answer.text)
        if not written:
            raise NoAnswerError(
                f"engine: the answer has no words in it ({answer.text[:40]!r}); try another seed "
                "or another model",
                answer.raw,
            )
        return escape_weights(written)

    def _messages(self, prompt: str, previous: str, cut: bool) -> list[Message]:
        parts = read_parts()
        told = [parts["task"], parts[self.language]]
        if self.picture is not None:
            told.append(parts["picture"])
        said = [f"Idea: {prompt or 'what could happen next in this picture'}"]
        if previous.strip():
            told.append(parts["after a cut" if cut else "after a shot"])
            said.insert(0, f"The shot before: {previous.strip()}")
        return [
            Message("system", "\n\n".join(told)),
            Message("user", "\n\n".join(said), self.picture),
        ]


def count_calls(text: str) -> int:
    """How often at most an engine is asked for such a text."""
    if not is_storyboard(text):
        return 1
    return len(_read_storyboard(text))


def _read_storyboard(text: str) -> list[TimedPrompt]:
    """Its shots; the last one ends whenever the film does."""
    try:
        return parse_storyboard(text, BOUNDS["seconds"][1])
    except ValueError as error:
        raise ValueError(f"prompt: {error}") from error


def read_parts(file: pathlib.Path = FILE) -> dict[str, str]:
    """The parts of the file by their headings.

    Raises ValueError where it cannot be read or a part is missing.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file.name}, the enhancer's instructions, cannot be read: {error}"
        ) from error
    _, *sections = re.split(r"^## +(.+?) *$", text, flags=re.MULTILINE)
    parts = {name: body.strip() for name, body in zip(sections[::2], sections[1::2], strict=True)}
    missing = [name for name in PARTS if not parts.get(name)]
    if missing:
        raise ValueError(
            f"{file.name}, the enhancer's instructions, has no part {missing[0]!r}; it must have "
            f"a heading '## {missing[0]}' with text below it"
        )
    return parts


def count_words(text: str) -> int:
    """Words of a text; where a language sets no spaces, two characters count as one."""
    sparse, dense = _DENSE.subn(" ", text)
    return len(re.findall(r"[^\W_]+", sparse)) + dense // 2


def tidy_prompt(text: str) -> str:
    """An answer as one paragraph of whole sentences, without what models put around it."""
    text = _BOLD.sub("", _FENCE.sub("", text)).strip()
    text = _LABEL.sub("", _OPENING.sub("", text)).strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
        text = text[1:-1]
    return _whole_sentences(" ".join(text.split()))


def escape_weights(text: str) -> str:
    """Brackets as text: in prompts (word:1.2) is a weight, and what a model writes means none."""
    return text.replace("\\", "").replace("(", "\\(").replace(")", "\\)")


def _whole_sentences(text: str) -> str:
    """As many whole sentences as the text encoder reads; the text itself where there are none."""
    kept = words = 0
    for end in _SENTENCE_END.finditer(text):
        words += count_words(text[kept : end.end()])
        if kept and words > MOST_WORDS:
            break
        kept = end.end()
    return text[:kept].strip() or text
