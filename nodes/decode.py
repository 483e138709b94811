"""Latents to frames."""

from __future__ import annotations

from comfy_api.latest import io

from .host.film.decoding import decode_film


class SkyReelsV2Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Decode",
            display_name="SkyReels-V2 Decode",
            category="SkyReels-V2/latent",
            description=(
                "Decodes a film's latents as a stream, window by window with the seams cut, so "
                "that the VAE's memory does not grow with the film."
            ),
            inputs=[
                io.Latent.Input("samples", tooltip="Latents of a SkyReels-V2 or Wan 2.1 model."),
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
                    "fewest tiles that fit. Tiles overlap, which costs time, and the frames "
                    "differ a little from untiled ones.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="All frames, for Create Video.")],
        )

    @classmethod
    def execute(
        cls, samples: io.Latent.Type, vae: io.Vae.Type, tile_size: int = 0
    ) -> io.NodeOutput:
        return io.NodeOutput(decode_film(vae, samples, tile_size))
