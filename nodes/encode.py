"""Frames to latents."""

from __future__ import annotations

from comfy_api.latest import io

from .host.film.encoding import encode_film


class SkyReelsV2Encode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Encode",
            display_name="SkyReels-V2 Encode",
            category="SkyReels-V2/latent",
            description=(
                "Encodes frames as a stream, so that the VAE's memory does not grow with the film. "
                "SkyReels-V2 Decode gives back exactly as many."
            ),
            inputs=[
                io.Image.Input(
                    "pixels",
                    tooltip="Frames of a film, any number, or an image; width and height are "
                    "multiples of 16.",
                ),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, ours or ComfyUI's."),
                io.Int.Input(
                    "tile_size",
                    default=0,
                    min=0,
                    max=4096,
                    step=32,
                    optional=True,
                    advanced=True,
                    tooltip="Side of square tiles in pixels, for small cards: a multiple of 32 "
                    "from 64 on. 0: whole pictures where the memory suffices for them, else the "
                    "fewest tiles that fit. Tiles overlap, which costs time, and the latents "
                    "differ a little from untiled ones.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    tooltip="For ComfyUI's KSampler, or as reference of SkyReels-V2 Color Anchor."
                )
            ],
        )

    @classmethod
    def execute(cls, pixels: io.Image.Type, vae: io.Vae.Type, tile_size: int = 0) -> io.NodeOutput:
        return io.NodeOutput(encode_film(vae, pixels, tile_size))
