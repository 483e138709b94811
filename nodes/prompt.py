"""Prompts to conditioning."""

from __future__ import annotations

from comfy_api.latest import io

from .host.checked import checked
from .host.sockets.clip import encode_prompt

# The negative prompt that the model's authors publish for it.
NEGATIVE = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, "
    "images, static, overall gray, worst quality, low quality, JPEG compression residue, ugly, "
    "incomplete, extra fingers, poorly drawn hands, poorly drawn faces, deformed, disfigured, "
    "misshapen limbs, fused fingers, still picture, messy background, three legs, many people in "
    "the background, walking backwards"
)


class SkyReelsV2PromptEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2PromptEncode",
            display_name="SkyReels-V2 Prompt",
            category="SkyReels-V2/conditioning",
            search_aliases=["clip text encode", "prompt", "negative prompt"],
            description=(
                "Encodes a prompt and a negative prompt the way the model was trained to read "
                "them: cleaned, at most 512 tokens. Brackets are plain text here, not weights."
            ),
            inputs=[
                io.Clip.Input("clip", tooltip="A UMT5 text encoder, ours or ComfyUI's."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the film shows: subject, motion, scene, light, camera. One "
                    "English paragraph works best. At most 512 tokens, about 380 words.",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default=NEGATIVE,
                    tooltip="What to avoid. The authors' negative prompt is filled in. Not used "
                    "when cfg is 1.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt: what to avoid."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(cls, clip: io.Clip.Type, prompt: str, negative: str) -> io.NodeOutput:
        return io.NodeOutput(
            encode_prompt(clip, "prompt", prompt), encode_prompt(clip, "negative", negative)
        )
