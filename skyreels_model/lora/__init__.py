"""LoRAs: whose names are they, and what do they change."""

from .match import MatchedLora, match_lora, peft_settings

__all__ = [
    "MatchedLora",
    "match_lora",
    "peft_settings",
]
