"""Latents to frames."""

from __future__ import annotations

from comfy_api.latest import io

from .host.checked import checked
from .host.film.decoding import decode_film
from .inputs import tile_size_input


class SkyReelsV2Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Decode",
            display_name="SkyReels-V2 Decode",
            category="SkyReels-V2/latent",
            search_aliases=["vae decode", "latent to video"],
            description=(
                "Decodes a film's latents a few frames at a time, so the VAE's memory does not "
                "grow with the film. Overlaps are left out: you get exactly the frames that you "
                "asked for."
            ),
            inputs=[
                io.Latent.Input(
                    "samples",
                    tooltip="Latents from SkyReels-V2 Sampler, or of any "
                    "SkyReels-V2 or Wan 2.1 model.",
                ),
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, ours or ComfyUI's."),
                tile_size_input(),
            ],
            outputs=[io.Image.Output(tooltip="All frames, for Create Video.")],
        )

    @classmethod
    @checked
    def execute(
        cls, samples: io.Latent.Type, vae: io.Vae.Type, tile_size: int = 0
    ) -> io.NodeOutput:
        return io.NodeOutput(decode_film(vae, samples, tile_size))
