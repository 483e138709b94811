"""Colour drift of a film: a meter, and a remedy."""

from __future__ import annotations

from comfy_api.latest import io

from ..skyreels_model.drift.meter import describe, draw
from .host.film.drift import anchor_film


class SkyReelsV2ColorAnchor(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2ColorAnchor",
            display_name="SkyReels-V2 Color Anchor",
            category="SkyReels-V2/latent",
            description=(
                "Measures how a film's colours drift from window to window, draws it, and holds "
                "them to its first window's or to a reference's. Cuts begin afresh. For drift that "
                "does not even arise, set anchor in the schedule."
            ),
            inputs=[
                io.Latent.Input("samples", tooltip="A film of SkyReels-V2 Sampler."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="0: measure only. 1: every window gets the reference's colours, mean "
                    "and covariance of the latents; too much where a film is meant to change.",
                ),
                io.Latent.Input(
                    "reference",
                    optional=True,
                    tooltip="Latents whose colours all windows are to have, for instance an image "
                    "through VAE Encode. Without: the film's, or the cut's, first window.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="samples", tooltip="For SkyReels-V2 Decode."),
                io.Image.Output(display_name="plot", tooltip="Drift by window, before correction."),
                io.String.Output(display_name="numbers", tooltip="The same in numbers."),
            ],
        )

    @classmethod
    def execute(
        cls,
        samples: io.Latent.Type,
        strength: float,
        reference: io.Latent.Type | None = None,
    ) -> io.NodeOutput:
        corrected, drifts = anchor_film(samples, strength, reference)
        return io.NodeOutput(corrected, draw(drifts), describe(drifts))
