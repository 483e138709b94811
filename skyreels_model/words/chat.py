"""A conversation as the one text that Qwen's models were trained to go on from (ChatML)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .engine import Message

# What the published templates put first where no one else does.
QWEN2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN2_5_VL = "You are a helpful assistant."
NO_THOUGHT = "<think>\n\n</think>\n\n"  # with which Qwen3 answers at once
END = "<|im_end|>"  # of each turn
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"

_MARK = re.compile(r"<\|(\w+)\|>|<(start_of_turn|end_of_turn|turn\||\|turn)>")


def defuse(text: str) -> str:
    """The text, with nothing in it that a tokenizer takes for the mark of a turn or a picture."""
    # Half a letter, of which a text in a wrong encoding may be made, no tokenizer takes.
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return _MARK.sub(lambda mark: f"< {mark[0][1:-1]} >", whole)


def write_chat(
    messages: Sequence[Message], pads: Sequence[Sequence[int]], system: str, opening: str = ""
) -> str:
    """The conversation, open for the next answer.

    pads: of each message, how many tokens each of its pictures takes; of a clip one number for all
    its frames. system: what is said first where no message does. opening: how the answer begins.
    """
    text = ""
    if system and all(message.role != "system" for message in messages):
        text = f"<|im_start|>system\n{system}{END}\n"
    for message, counts in zip(messages, pads, strict=True):
        mark = IMAGE_PAD if message.fps is None else VIDEO_PAD
        seen = "".join(f"<|vision_start|>{mark * count}<|vision_end|>" for count in counts)
        text += f"<|im_start|>{message.role}\n{seen}{defuse(message.text)}{END}\n"
    return f"{text}<|im_start|>assistant\n{opening}"
