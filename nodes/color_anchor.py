"""Colour drift of a film: a meter, and a remedy."""

from __future__ import annotations

from comfy_api.latest import io

from ..skyreels_model.drift.meter import describe, draw
from .host.checked import checked
from .host.film.drift import anchor_film


class SkyReelsV2ColorAnchor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2ColorAnchor",
            display_name="SkyReels-V2 Color Anchor",
            category="SkyReels-V2/latent",
            search_aliases=["color drift", "color match", "color correction"],
            description=(
                "Measures how a film's colours drift from window to window, draws it, and brings "
                "them back to those of its first window or of a reference. Cuts start afresh. To "
                "keep colours from drifting at all, set anchor in the schedule."
            ),
            inputs=[
                io.Latent.Input("samples", tooltip="A film from SkyReels-V2 Sampler."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0: only measure. 1: every window gets all of the reference's "
                    "colours. That is too much where the film is meant to change.",
                ),
                io.Latent.Input(
                    "reference",
                    optional=True,
                    tooltip="Latents whose colours all windows get, for example an image through "
                    "VAE Encode. Without it: the first window, of the film or since a cut.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="samples", tooltip="For SkyReels-V2 Decode."),
                io.Image.Output(display_name="plot", tooltip="Drift by window, before correction."),
                io.String.Output(display_name="numbers", tooltip="The same in numbers."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        samples: io.Latent.Type,
        strength: float,
        reference: io.Latent.Type | None = None,
    ) -> io.NodeOutput:
        corrected, drifts = anchor_film(samples, strength, reference)
        return io.NodeOutput(corrected, draw(drifts), describe(drifts))
