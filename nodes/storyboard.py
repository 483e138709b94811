"""Shots of a film, each with a prompt of its own."""

from __future__ import annotations

from comfy_api.latest import io

from .host import files
from .host.checked import checked
from .host.film.shots import NO_LORA, FilmShot, add_shot, parse_shots
from .inputs import Storyboard

TRANSITIONS = ("continue", "cut")
OWN_SEED = -1


class SkyReelsV2Storyboard(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Storyboard",
            display_name="SkyReels-V2 Storyboard",
            category="SkyReels-V2/conditioning",
            search_aliases=["shot", "prompt travel", "prompt schedule", "scene"],
            description=(
                "One shot of a film: its prompt and its length. Chain several through 'previous'. "
                "The film continues from shot to shot, or cuts. The sampler makes them all in one "
                "run."
            ),
            inputs=[*_shot_inputs(), *_optional_inputs()],
            outputs=[
                Storyboard.Output(
                    display_name="storyboard", tooltip="For the sampler, or for the next shot."
                ),
                io.Float.Output(
                    display_name="seconds", tooltip="Length of all shots so far, in seconds."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip: io.Clip.Type,
        prompt: str,
        seconds: float,
        previous: tuple[FilmShot, ...] = (),
        transition: str = "continue",
        ease: int = 0,
        seed: int = OWN_SEED,
        model: io.Model.Type | None = None,
    ) -> io.NodeOutput:
        own = None if seed == OWN_SEED else seed
        cut = transition == "cut"
        shots = add_shot(previous, clip, prompt, seconds, cut, ease, own, model)
        return io.NodeOutput(shots, sum(shot.seconds for shot in shots))


class SkyReelsV2StoryboardText(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2StoryboardText",
            display_name="SkyReels-V2 Storyboard (Text)",
            category="SkyReels-V2/conditioning",
            search_aliases=["shot", "prompt travel", "prompt schedule", "scene"],
            description="A whole storyboard in one text. Each prompt follows the second at which "
            "it begins.",
            inputs=[
                io.Clip.Input("clip", tooltip="A UMT5 text encoder, ours or ComfyUI's."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="0s: a street at dawn\n6s: rain sets in over the street",
                    tooltip="One prompt per line (or separated by slashes), each after the second "
                    "at which it begins: '0s: a street at dawn / 6s: rain sets in / 9s cut: "
                    "inside a café'. 'cut' starts afresh. Words before the colon: cut, ease 12 "
                    "(cross-fade in frames, instead of ease), seed 7 (this shot's own), lora 0.5 "
                    "(strength of the LoRA in lora_name).",
                ),
                io.Float.Input(
                    "seconds",
                    default=10.0,
                    min=0.1,
                    max=86400.0,
                    step=0.1,
                    tooltip="Length of the whole film in seconds.",
                ),
                _ease_input(),
                io.Combo.Input(
                    "lora_name",
                    options=[NO_LORA, *files.list_files("loras")],
                    default=NO_LORA,
                    optional=True,
                    tooltip="A LoRA from models/loras for the shots, on top of the sampler's "
                    "model. Its strength is 1, or what a shot says: 'lora 0.5' before the colon, "
                    "'lora 0' for a shot without it.",
                ),
            ],
            outputs=[Storyboard.Output(display_name="storyboard", tooltip="For the sampler.")],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        return lora_name == NO_LORA or files.check_listed("lora_name", "loras", lora_name)

    @classmethod
    @checked
    def execute(
        cls,
        clip: io.Clip.Type,
        text: str,
        seconds: float,
        ease: int = 0,
        lora_name: str = NO_LORA,
    ) -> io.NodeOutput:
        return io.NodeOutput(parse_shots(clip, text, seconds, ease, lora_name))


def _shot_inputs() -> list[io.Input]:
    return [
        io.Clip.Input("clip", tooltip="A UMT5 text encoder, ours or ComfyUI's."),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            tooltip="What this shot shows. At most 512 tokens, about 380 words.",
        ),
        io.Float.Input(
            "seconds",
            default=4.0,
            min=0.1,
            max=86400.0,
            step=0.1,
            tooltip="Length of this shot in seconds. The schedule's frames are not used.",
        ),
    ]


def _optional_inputs() -> list[io.Input]:
    return [
        Storyboard.Input("previous", optional=True, tooltip="The shots before this one."),
        io.Combo.Input(
            "transition",
            options=list(TRANSITIONS),
            default="continue",
            optional=True,
            tooltip="continue: the film goes on from the previous shot. cut: it starts afresh.",
        ),
        _ease_input(),
        io.Int.Input(
            "seed",
            default=OWN_SEED,
            min=OWN_SEED,
            max=0xFFFFFFFFFFFFFFFF,
            optional=True,
            advanced=True,
            tooltip="-1: the sampler's seed. Any other: for this shot only, so that it can be "
            "regenerated while the shots before it stay.",
        ),
        io.Model.Input(
            "model",
            optional=True,
            advanced=True,
            tooltip="A model for this shot only, for example with other LoRA strengths.",
        ),
    ]


def _ease_input() -> io.Input:
    return io.Int.Input(
        "ease",
        default=0,
        min=0,
        max=1000,
        optional=True,
        advanced=True,
        tooltip="Cross-fade: how many frames the previous prompt takes to fade into this one. 0: "
        "switch at once. Windows with a cross-fade take 1.5 times as long.",
    )
