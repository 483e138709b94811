"""An engine that answers from a list, word by word, and remembers what it was asked."""

import dataclasses
import re


@dataclasses.dataclass
class ScriptedEngine:
    """Each call takes the next of `answers`, a string or an exception to raise.

    Tokens are words with the white space after them, at most `sampling.max_tokens`.
    """

    answers: list
    sees_pictures: bool = True
    constrains_json: bool = False
    name: str = "the scripted engine"
    asked: list = dataclasses.field(default_factory=list)

    def generate(self, messages, sampling, on_token):
        self.asked.append((messages, sampling))
        answer = self.answers[len(self.asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        pieces = re.findall(r"\s*\S+\s*", answer)[: sampling.max_tokens]
        for piece in pieces:
            on_token(piece)
        return "".join(pieces)
