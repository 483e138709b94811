"""The authors' settings for each of their models, by a name that an artist knows."""

from __future__ import annotations

from dataclasses import dataclass, fields

from .bounds import least_sliding_ar_step

CUSTOM = "custom"


@dataclass(frozen=True)
class Preset:
    """The numbers of a plan that a preset sets; named and counted as in `FilmPlan`."""

    width: int
    height: int
    window: int
    overlap: int
    steps: int
    shift: float
    ar_step: int
    block_size: int
    prefix_noise: int

    def numbers(self, upright: bool) -> dict[str, int | float]:
        """By name; upright: the same size, higher than wide."""
        numbers = {field.name: getattr(self, field.name) for field in fields(self)}
        if upright:
            numbers["width"], numbers["height"] = self.height, self.width
        return numbers

    def sliding_ar_step(self, steps: int) -> int:
        """The nearest ar_step to the authors' with which a film of so many steps can slide."""
        return max(self.ar_step, least_sliding_ar_step(steps, self.window, self.block_size))


# SkyworkAI/SkyReels-V2 at abed76f. README: windows of 97 frames at 540P and 121 at 720P, an overlap
# of 17 (or 37), addnoise_condition 20, ar_step 5 with causal_block_size 5 for asynchronous films,
# shift 8 for text, 5 (the table; the notes say 3) for images. `generate_video_df.py`: 30 steps (the
# README advises 50 for best quality), 960 x 544 and 1280 x 720.
_MODELS = {
    "1.3B 540P": {"width": 960, "height": 544, "window": 97},
    "14B 540P": {"width": 960, "height": 544, "window": 97},
    "14B 720P": {"width": 1280, "height": 720, "window": 121},
}
_SHIFTS = {"text": 8.0, "image": 5.0}
_WAYS = {"": {"ar_step": 0, "block_size": 1}, ", asynchronous": {"ar_step": 5, "block_size": 5}}

PRESETS: dict[str, Preset] = {
    f"{model}, {source}{way}": Preset(
        **size, **lag, shift=shift, overlap=17, steps=30, prefix_noise=20
    )
    for model, size in _MODELS.items()
    for source, shift in _SHIFTS.items()
    for way, lag in _WAYS.items()
}
# Distillations of Wan 2.1 T2V-1.3B by Self-Forcing (guandeh17/Self-Forcing) and Causal-Forcing
# (thu-ml/Causal-Forcing), 480P: blocks of 3 latents of 21, one after the other, in the steps 1000,
# 750, 500 and 250 of 1000 by a shift of 5, with a block given from one window to the next.
CAUSAL_PRESET = "1.3B 480P, causal (Self-Forcing)"
PRESETS[CAUSAL_PRESET] = Preset(
    width=832, height=480, window=81, overlap=9, steps=4, shift=5.0, ar_step=4, block_size=3,
    prefix_noise=0,
)  # fmt: skip


def describe_preset(name: str, preset: dict[str, int | float]) -> str:
    """What a preset has set, in a line."""
    numbers = dict(preset)
    size = f"{numbers.pop('width')} x {numbers.pop('height')}"
    told = f"Preset {name}: {size}, " + ", ".join(f"{k} {v:g}" for k, v in numbers.items())
    return f"{told}. For the sampler: solver lcm, cfg 1" if name == CAUSAL_PRESET else told


def describe_sliding(name: str, ar_step: int, steps: int) -> str:
    """Why a sliding film by this preset has another ar_step than the authors'."""
    preset = PRESETS[name]
    return (
        f"Preset {name} has ar_step {preset.ar_step}, which is for films in windows. Sliding at "
        f"{steps} steps needs at least {ar_step}, so that each block is done before it leaves the "
        f"view: ar_step is {ar_step}."
    )
