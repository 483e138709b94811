"""Who writes and reads words about films: engines, and what is asked of them."""

from .ask import Answer, EngineFailedError, NoAnswerError, UnansweredError, ask
from .engine import Engine, Message, OnToken, Sampling

__all__ = [
    "Answer",
    "Engine",
    "EngineFailedError",
    "Message",
    "NoAnswerError",
    "OnToken",
    "Sampling",
    "UnansweredError",
    "ask",
]
