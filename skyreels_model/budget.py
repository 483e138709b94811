"""Will it fit: the memory that sampling needs, for the host, for people, and for a card.

Where a GB is said to people it has 2^30 bytes, as on the cards' boxes.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .cache.keys_values import frame_bytes
from .grid import CHANNELS, latent_length
from .model.config import ModelConfig
from .model.memory import Execution, forward_bytes, weights_bytes
from .operations import Unfilled
from .text_encoder.tokenizer import MAX_LENGTH
from .vae.memory import decode_memory
from .vae.network import VideoVAE

# Latents in float32 that live on the device around a forward, measured with UniPC, which keeps the
# most: those of the film, its solver and the host's guider; and for each prompt in the batch, what
# goes into the forward and comes out of it.
FILM_LATENTS, PROMPT_LATENTS = 10, 4
STREAMED_LAYERS = 3  # the one at work, and two on their way (ComfyUI's default on NVIDIA)
GB = 2**30
# What the driver, the screen and the host take of a card (ComfyUI keeps 0.4 to 0.7 GB free).
TAKEN = GB
CARDS = (8, 12, 16, 24, 48, 80)
COMPUTE = 2  # bytes a number: bfloat16
FORMATS = {"bf16": 2, "fp8": 1}
MODELS = {
    "1.3B": ModelConfig(fps_embedding=True),
    "14B": ModelConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
}
# The sizes that were trained: model, pixels, frames a window.
TRAINED = {
    "1.3B 540P": ("1.3B", 960, 544, 97),
    "14B 540P": ("14B", 960, 544, 97),
    "14B 720P": ("14B", 1280, 720, 121),
}


def sampling_bytes(
    config: ModelConfig,
    batch: int,
    frames: int,
    height: int,
    width: int,
    itemsize: int,
    execution: Execution,
    text_rows: int = MAX_LENGTH,
) -> int:
    """Bytes beside the weights while a window is sampled; all as in `forward_bytes`."""
    needed = forward_bytes(config, batch, frames, height, width, itemsize, text_rows, execution)
    latent = CHANNELS * frames * height * width * 4
    return needed + (FILM_LATENTS + PROMPT_LATENTS * batch) * latent


@dataclass(frozen=True)
class Need:
    """Bytes for one prompt at a time: with all weights on the card, or moved to it one by one."""

    weights: int
    sampling: int
    layers: int

    @property
    def resident(self) -> int:
        return self.weights + self.sampling

    @property
    def streamed(self) -> int:
        return self.layers + self.sampling

    def verdict(self, card: int) -> str:
        """ "all", "streamed" or "-": how the weights can be on a card of so many bytes."""
        usable = card - TAKEN
        return "all" if self.resident <= usable else "streamed" if self.streamed <= usable else "-"


def need(config: ModelConfig, latents: int, width: int, height: int, itemsize: int) -> Need:
    """What a window of so many latents of (height, width) pixels needs, computed in bfloat16."""
    casts, layer = itemsize != COMPUTE, config.dim * config.ffn_dim
    execution = Execution(casts=casts)
    return Need(
        weights_bytes(config, itemsize),
        sampling_bytes(config, 1, latents, height // 8, width // 8, COMPUTE, execution),
        STREAMED_LAYERS * layer * itemsize + casts * layer * COMPUTE,
    )


@functools.cache
def _published_vae() -> VideoVAE:
    """The published VAE's layers, without numbers."""
    return VideoVAE(operations=Unfilled, device="meta")


def vae_bytes(width: int, height: int) -> int:
    """What the host is told that decoding (height, width) pixels needs beside the weights."""
    return decode_memory(_published_vae(), height, width, COMPUTE).needed


def describe_memory(latents: int, width: int, height: int, card: tuple[str, int] | None) -> str:
    """Lines for people: what each model needs for such a window, and what this card can do.

    card: its name and bytes; None where there is none.
    """
    found: dict[str, list[str]] = {"all": [], "streamed": [], "-": []}
    lines = ["GPU memory in GB, with all weights on the GPU / streamed from RAM:"]
    for model, config in MODELS.items():
        numbers = []
        for name, itemsize in FORMATS.items():
            one = need(config, latents, width, height, itemsize)
            sizes = [n / GB for n in (one.resident, one.streamed, one.weights)]
            numbers.append("{} {:.1f} / {:.1f} (RAM {:.1f})".format(name, *sizes))
            if card is not None:
                found[one.verdict(card[1])].append(f"{model} {name}")
        lines.append(f"{model}: {', '.join(numbers)}")
    lines.append(f"VAE: {vae_bytes(width, height) / GB:.1f}, or in tiles")
    if card is None:
        return "\n".join([*lines, "this machine: no GPU"])
    words = {"all": "fit", "streamed": "streamed", "-": "too large"}
    told = [f"{words[key]}: {', '.join(names)}" for key, names in found.items() if names]
    return "\n".join([*lines, f"this machine: {card[0]}, {card[1] / GB:.1f} GB; {'; '.join(told)}"])


def describe_model(
    name: str, latents: int, width: int, height: int, card: tuple[str, int] | None
) -> str:
    """A line for people on the model that a file's name tells of; empty where it tells of none.

    name: with the format of its weights, if that is known.
    """
    config = next((config for size, config in MODELS.items() if size in name), None)
    if config is None or "gguf" in name.lower():
        return ""
    form = "fp8" if "fp8" in name.lower() else "bf16"
    one = need(config, latents, width, height, FORMATS[form])
    line = (
        f"GPU memory: {one.resident / GB:.1f} GB, or {one.streamed / GB:.1f} GB streamed ({form})"
    )
    if card is not None and one.verdict(card[1]) == "-":
        line += f". TOO LARGE: {card[0]} has {card[1] / GB:.1f} GB"
    return line


def kept_bytes(config: ModelConfig, frames: int, h: int, w: int, itemsize: int) -> int:
    """Of so many latent frames of (h, w) latents whose keys and values are kept, for a prompt."""
    _, patch_h, patch_w = config.patch_size
    tokens = -(-h // patch_h) * -(-w // patch_w)
    return frames * frame_bytes(tokens, config.dim, config.num_layers, itemsize)


def describe_kept(frames: int, width: int, height: int, itemsize: int, in_ram: bool) -> str:
    """A line for people: what keeping so many latent frames takes, for both prompts together."""
    sizes = [
        f"{model} {2 * kept_bytes(config, frames, height // 8, width // 8, itemsize) / GB:.1f} GB"
        for model, config in MODELS.items()
    ]
    where = "RAM" if in_ram else "GPU memory"
    return f"{where} for finished frames that are kept, beside this: {', '.join(sizes)}"


def film_bytes(frames: int, latents: int, width: int, height: int) -> tuple[int, int]:
    """RAM of a finished film: its frames as an IMAGE and its latents, both in float32."""
    return frames * height * width * 3 * 4, CHANNELS * latents * (height // 8) * (width // 8) * 4


def describe_ram(frames: int, latents: int, width: int, height: int, ram: int) -> str:
    """A line for people: the RAM of a finished film, and whether `ram` bytes hold it."""
    pictures, own = film_bytes(frames, latents, width, height)
    line = f"RAM for the film: frames {pictures / GB:.1f} GB, latents {own / GB:.2f} GB"
    if pictures + own <= ram:
        return line
    return (
        f"{line}. TOO LARGE: this machine has {ram / GB:.1f} GB. Make it shorter or smaller, or in "
        f"parts that each extend the one before"
    )


def table() -> str:
    """The README's table in Markdown: trained sizes, number formats and cards."""
    heads = ["model", "weights", "all on the GPU", "streamed", "RAM", *(f"{n} GB" for n in CARDS)]
    rows = [heads, ["---"] * len(heads)]
    for name, (model, width, height, frames) in TRAINED.items():
        for form, itemsize in FORMATS.items():
            one = need(MODELS[model], latent_length(frames), width, height, itemsize)
            sizes = [f"{n / GB:.1f} GB" for n in (one.resident, one.streamed, one.weights)]
            cards = [one.verdict(n * GB).replace("-", "–") for n in CARDS]
            window = f"{name}, {frames} frames of {width} × {height}"
            rows.append([window, form, *sizes, *cards])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
