"""What models write beside their answer: thoughts to be dropped, loops to be cut."""

from __future__ import annotations

import re

# A published captioner repeats a sentence or a list entry until its tokens run out.
LOOP_TIMES = 4  # as often in a row
LOOP_LENGTH = 60  # characters that repeat at least, all rounds together
LONGEST_ROUND = 1000  # characters

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_THOUGHT_END = re.compile(r"\A.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)

_SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u201d\u2019)]*(?=\s|\Z)|[\u3002\uff01\uff1f]+|(?=\n)")


def drop_thoughts(text: str) -> str:
    """The text without <think> blocks, trimmed; one without an end goes to the end of the text.

    Some chat templates write the start of a thought themselves, so that an answer has only its end.
    """
    text = _THOUGHT.sub("", text)
    return _THOUGHT_END.sub("", text).strip()


def find_loop(text: str) -> tuple[int, int] | None:
    """Where the text ends in one thing over and over: its start, and the length of a round.

    None when it does not. The last round may be unfinished. The shortest round counts.
    """
    for length in range(1, min(LONGEST_ROUND, len(text) // LOOP_TIMES) + 1):
        start = len(text) - length
        while start > 0 and text[start - 1] == text[start - 1 + length]:
            start -= 1
        repeated = len(text) - start
        if repeated >= max(LOOP_TIMES * length, LOOP_LENGTH):
            return start, length
    return None


def cut_loop(text: str) -> str:
    """The text with one round of the loop that it ends in, and that to the end of a sentence."""
    loop = find_loop(text.rstrip())
    if loop is None:
        return text
    # Sentences that end alike let the loop begin a few characters before a sentence does.
    end = sum(loop)
    ending = _SENTENCE_END.search(text, len(text[:end].rstrip()) - 1, end + loop[1])
    return text[: ending.end() if ending else end]
