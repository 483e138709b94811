"""Pictures and films that a film is given: where it begins, ends, and passes on its way."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..skyreels_model.framing import FITS
from ..skyreels_model.plan.bounds import BOUNDS
from ..skyreels_model.plan.drawing import draw_plan
from ..skyreels_model.plan.film_plan import FilmPlan
from ..skyreels_model.plan.summary import describe_plan
from .host.checked import checked
from .host.film.given import collect_images
from .inputs import Frames, Schedule


class SkyReelsV2Frames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Frames",
            display_name="SkyReels-V2 Frames",
            category="SkyReels-V2/conditioning",
            search_aliases=["start image", "end image", "key frames", "extend video"],
            description=(
                "Images and clips that guide a film, in any combination: a start image or a clip "
                "to extend, an end image or a clip to lead into, and key images at any second. "
                "Any size will do. The preview shows them as the model will see them."
            ),
            inputs=[
                Schedule.Input(
                    "schedule", tooltip="The film's schedule, from SkyReels-V2 Schedule."
                ),
                *_image_inputs(),
                *_clip_inputs(),
            ],
            outputs=[
                Frames.Output(display_name="frames", tooltip="For the sampler."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The images as the model sees them, in the film's order. A clip to "
                    "extend shows its last frame, a clip to lead into its first.",
                ),
                io.Image.Output(
                    display_name="picture",
                    tooltip="The plan with the given images in their places, drawn as by "
                    "SkyReels-V2 Schedule.",
                ),
                io.String.Output(display_name="summary", tooltip="The same plan in numbers."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        schedule: FilmPlan,
        key_seconds: str = "",
        fit: str = "crop",
        loop: bool = False,
        clip_fps: float | None = None,
        **given: Any,
    ) -> io.NodeOutput:
        images = collect_images(schedule, given, key_seconds, fit, loop, clip_fps)
        plan = schedule.fit(images.counts)
        summary = describe_plan(plan) + images.describe()
        return io.NodeOutput(images, images.preview, draw_plan(plan), summary)


def _image_inputs() -> list[io.Input]:
    return [
        io.Image.Input("start_image", optional=True, tooltip="The film's first frame. One image."),
        io.Image.Input(
            "end_image",
            optional=True,
            tooltip="What the film arrives at, right after its last frame. One image.",
        ),
        io.Image.Input(
            "key_images",
            optional=True,
            tooltip="Images that the film passes through on its way, as a batch.",
        ),
        io.String.Input(
            "key_seconds",
            default="",
            optional=True,
            tooltip="When each key image appears, in seconds, separated by commas: 2, 4.5. "
            "Accurate to 1/8 s at 24 fps.",
        ),
        io.Image.Input(
            "video",
            optional=True,
            tooltip="Frames of a clip to extend, instead of a start image. The film continues its "
            "last frames (the schedule's overlap). SkyReels-V2 Decode gives all of the clip, then "
            "the new frames. The schedule's frames include the overlap.",
        ),
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default="crop",
            optional=True,
            tooltip="For images with other proportions. crop cuts out the middle, as in training. "
            "pad keeps the whole image between black bars, which stay in the film.",
        ),
        io.Boolean.Input(
            "loop",
            default=False,
            optional=True,
            tooltip="End where the film begins: the start image is also the end image.",
        ),
    ]


def _clip_inputs() -> list[io.Input]:
    return [
        io.Image.Input(
            "source",
            optional=True,
            tooltip="Video to video: the frames to change, at least as many as the schedule's. "
            "The schedule's denoise, below 1, says how much of them to replace.",
        ),
        io.Image.Input(
            "prepend_to",
            optional=True,
            tooltip="A clip to lead into. On its own, the film is made backwards from it. With a "
            "start image, a video, several shots or sliding, it is made forwards until it meets "
            "the clip. SkyReels-V2 Decode gives the new frames, then the clip.",
        ),
        io.Float.Input(
            "clip_fps",
            min=BOUNDS["clip_fps"][0],
            max=BOUNDS["clip_fps"][1],
            optional=True,
            force_input=True,
            tooltip="Frames per second of video, source and prepend_to, such as the fps of Get "
            "Video Components. They are brought to the schedule's fps. Not connected: they have "
            "it already.",
        ),
        io.Video.Input(
            "video_file",
            optional=True,
            tooltip="As video, from Load Video: of a long clip only the frames that the film "
            "continues are decoded. Its frame rate is brought to the schedule's.",
        ),
        io.Video.Input(
            "prepend_to_file",
            optional=True,
            tooltip="As prepend_to, from Load Video: of a long clip only the frames that the film "
            "leads into are decoded. Its frame rate is brought to the schedule's.",
        ),
    ]
