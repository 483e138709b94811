"""UMT5: prompts to rows of text."""

from .config import UMT5Config
from .names import hf_to_original, to_original_names
from .network import UMT5Encoder

__all__ = [
    "UMT5Config",
    "UMT5Encoder",
    "hf_to_original",
    "to_original_names",
]
