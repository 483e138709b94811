"""A start image for the image-to-video models."""

from __future__ import annotations

from comfy_api.latest import io

from ..skyreels_model.framing import FITS
from ..skyreels_model.plan.film_plan import FilmPlan
from .host.checked import checked
from .host.film.image_to_video import image_to_video


class SkyReelsV2ImageToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2ImageToVideo",
            display_name="SkyReels-V2 Image to Video",
            category="SkyReels-V2/conditioning",
            search_aliases=["i2v", "wan image to video", "start image"],
            description=(
                "Adds a start image to the conditioning of an I2V model, prepared as in training: "
                "cropped, resized, encoded with grey frames after it, and seen by CLIP."
            ),
            inputs=[*_conditioning_inputs(), *_size_inputs(), *_image_inputs()],
            outputs=[
                io.Conditioning.Output(
                    display_name="positive", tooltip="The same with the image added."
                ),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The same with the image added."
                ),
                io.Latent.Output(
                    display_name="latent",
                    tooltip="Empty, of the film's size, for ComfyUI's KSampler. Our sampler does "
                    "not need it.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        vae: io.Vae.Type,
        start_image: io.Image.Type,
        width: int,
        height: int,
        frames: int,
        clip_vision: io.ClipVision.Type | None = None,
        fit: str = "crop",
    ) -> io.NodeOutput:
        size = FilmPlan(num_frames=frames, width=width, height=height)
        return io.NodeOutput(
            *image_to_video(positive, negative, vae, start_image, size, clip_vision, fit)
        )


def _conditioning_inputs() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="The prompt."),
        io.Conditioning.Input("negative", tooltip="The negative prompt."),
        io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, ours or ComfyUI's."),
        io.Image.Input("start_image", tooltip="The film's first frame. One image of any size."),
    ]


def _size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "width",
            default=960,
            min=16,
            max=4096,
            step=16,
            tooltip="Width in pixels, the same as the schedule's, a multiple of 16. Authors' "
            "value: 960 (540P) or 1280 (720P).",
        ),
        io.Int.Input(
            "height",
            default=544,
            min=16,
            max=4096,
            step=16,
            tooltip="Height in pixels, the same as the schedule's, a multiple of 16. Authors' "
            "value: 544 (540P) or 720 (720P).",
        ),
        io.Int.Input(
            "frames",
            default=97,
            min=1,
            max=1001,
            tooltip="Length of the film in frames, all in one window. Connect the schedule's "
            "frames. Trained: 97 at 540P, 121 at 720P. KSampler makes 4k + 1 frames, up to 3 more.",
        ),
    ]


def _image_inputs() -> list[io.Input]:
    return [
        io.ClipVision.Input(
            "clip_vision",
            optional=True,
            tooltip="CLIP ViT-H, ours or ComfyUI's. The I2V models were trained with it. Without "
            "it they see the image only through the VAE.",
        ),
        io.Combo.Input(
            "fit",
            options=list(FITS),
            default="crop",
            optional=True,
            tooltip="For an image with other proportions. crop cuts out the middle, as in "
            "training. pad keeps the whole image between black bars, which stay in the film.",
        ),
    ]
