"""Frames to latents."""

from __future__ import annotations

from comfy_api.latest import io

from .host.checked import checked
from .host.film.encoding import encode_film
from .inputs import tile_size_input


class SkyReelsV2Encode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Encode",
            display_name="SkyReels-V2 Encode",
            category="SkyReels-V2/latent",
            search_aliases=["vae encode", "video to latent"],
            description=(
                "Encodes frames a few at a time, so the VAE's memory does not grow with the film. "
                "SkyReels-V2 Decode gives back exactly as many."
            ),
            inputs=[
                io.Image.Input(
                    "pixels",
                    tooltip="Frames of a clip, any number, or one image. Width and height are "
                    "multiples of 16.",
                ),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, ours or ComfyUI's."),
                tile_size_input(),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="For ComfyUI's KSampler, or as reference of SkyReels-V2 Color Anchor."
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, pixels: io.Image.Type, vae: io.Vae.Type, tile_size: int = 0) -> io.NodeOutput:
        return io.NodeOutput(encode_film(vae, pixels, tile_size))
