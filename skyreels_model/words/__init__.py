"""Who writes and reads words about films: engines, and what is asked of them."""

from .ask import Answer, NoAnswerError, ask
from .engine import Engine, Message, OnToken, Sampling

__all__ = ["Answer", "Engine", "Message", "NoAnswerError", "OnToken", "Sampling", "ask"]
