"""Pictures and films that a film is given: where it begins, ends, and passes on its way."""

from __future__ import annotations

from comfy_api.latest import io

from ..skyreels_model.framing import FITS
from ..skyreels_model.plan.drawing import draw_plan
from ..skyreels_model.plan.film_plan import FilmPlan
from ..skyreels_model.plan.summary import describe
from .host.film.given import collect_images
from .inputs import Frames, Schedule


class SkyReelsV2Frames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Frames",
            display_name="SkyReels-V2 Frames",
            category="SkyReels-V2/conditioning",
            description=(
                "What a film is given besides its prompt, in any combination: a start image or a "
                "film to go on from, an end image or a film to lead up to, and key images at any "
                "second. Images of any size are fitted to the film's, and shown as the model will "
                "see them."
            ),
            inputs=[Schedule.Input("schedule", tooltip="The film's."), *_image_inputs()],
            outputs=[
                Frames.Output(display_name="frames", tooltip="For the sampler."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="The images as the model sees them, in the film's order; of a video "
                    "its last frame, of what follows its first.",
                ),
                io.Image.Output(
                    display_name="picture",
                    tooltip="The plan with what is given in its place: noise levels of the first "
                    "windows, as SkyReels-V2 Schedule draws them.",
                ),
                io.String.Output(display_name="summary", tooltip="The same plan in numbers."),
            ],
        )

    @classmethod
    def execute(
        cls,
        schedule: FilmPlan,
        key_seconds: str = "",
        fit: str = "crop",
        loop: bool = False,
        **given: io.Image.Type | None,
    ) -> io.NodeOutput:
        images = collect_images(schedule, given, key_seconds, fit, loop)
        plan = images.plan(schedule)
        return io.NodeOutput(images, images.shown, draw_plan(plan), describe(plan))


def _image_inputs() -> list[io.Input]:
    return [
        io.Image.Input("start_image", optional=True, tooltip="The film's first frame: one image."),
        io.Image.Input(
            "end_image",
            optional=True,
            tooltip="What the film arrives at: the moment right behind its last frame. One image.",
        ),
        io.Image.Input(
            "key_images",
            optional=True,
            tooltip="Images that the film passes on its way, as a batch.",
        ),
        io.String.Input(
            "key_seconds",
            default="",
            optional=True,
            tooltip="When: a second for each key image, with commas between, such as 2, 4.5. They "
            "are kept to within an eighth of a second at 24 fps.",
        ),
        io.Image.Input(
            "video",
            optional=True,
            tooltip="Frames of a film to go on from, instead of a start image. Its last frames "
            "(the schedule's overlap) are continued; SkyReels-V2 Decode gives all of it and the "
            "new frames. The schedule's frames count the overlap once.",
        ),
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default="crop",
            optional=True,
            tooltip="Images of other proportions: crop cuts the middle out, as in training. pad "
            "shows all of it between black bars, which stay in the film.",
        ),
        io.Boolean.Input(
            "loop",
            default=False,
            optional=True,
            tooltip="End where the film begins: the start image is the end image, too.",
        ),
        io.Image.Input(
            "source",
            optional=True,
            tooltip="Frames of a film to make anew, at least as many as the schedule's: how much "
            "of it stays is the schedule's denoise, below 1.",
        ),
        io.Image.Input(
            "prepend_to",
            optional=True,
            tooltip="Frames of a film that the new one leads up to. Alone, the new film is made "
            "backwards from it, window by window; with a start image, a video, a storyboard of "
            "several shots, or in one sequence, forwards until it meets it. SkyReels-V2 Decode "
            "gives the new frames and then these.",
        ),
    ]
