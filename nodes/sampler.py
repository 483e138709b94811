"""The one sampler: a film of any length, all its windows, from one node."""

from __future__ import annotations

from comfy_api.latest import io

from ..skyreels_model.drift.meter import describe, draw
from ..skyreels_model.plan.film_plan import FilmPlan
from ..skyreels_model.plan.guidance import film_guidance
from ..skyreels_model.solvers import SOLVERS
from .host.checked import checked
from .host.film.drift import film_drift
from .host.film.given import FilmImages
from .host.film.sampling import sample_film
from .host.film.shots import FilmShot
from .host.film.store import StoreSettings
from .inputs import Frames, Schedule, Store, Storyboard


class SkyReelsV2Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Sampler",
            display_name="SkyReels-V2 Sampler",
            category="SkyReels-V2/sampling",
            search_aliases=["ksampler", "long video", "diffusion forcing", "film"],
            description=(
                "Makes the whole film, window by window. Each window continues the last frames of "
                "the previous one. Every latent frame has its own noise level (diffusion forcing)."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A SkyReels-V2 DF model, from our loader or ComfyUI's Load Diffusion "
                    "Model. LoRAs and patches work. The shift is the schedule's, not the model's.",
                ),
                io.Conditioning.Input("positive", tooltip="The prompt."),
                io.Conditioning.Input("negative", tooltip="The negative prompt: what to avoid."),
                Schedule.Input(
                    "schedule",
                    tooltip="Size, length, windows and steps, from SkyReels-V2 Schedule.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The same seed gives the same film. A longer film with the same seed "
                    "begins like the shorter one. If it is made backwards, it ends like it.",
                ),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the film follows the prompt. Authors' value: 6 for "
                    "text, 5 with a start image. 1 turns guidance off and halves the time.",
                ),
                _solver_input(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Needed for films longer than a window, unless the schedule's history "
                    "is latents. Also needed for images from SkyReels-V2 Frames.",
                ),
                *_film_inputs(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: io.Model.Type,
        positive: io.Conditioning.Type,
        negative: io.Conditioning.Type,
        schedule: FilmPlan,
        seed: int,
        cfg: float,
        solver: str,
        vae: io.Vae.Type | None = None,
        frames: FilmImages | None = None,
        storyboard: tuple[FilmShot, ...] = (),
        cfg_curve: str = "",
        store: StoreSettings | None = None,
    ) -> io.NodeOutput:
        guidance = film_guidance(cfg, cfg_curve)
        latent, report = sample_film(
            model,
            positive,
            negative,
            schedule,
            vae,
            seed,
            guidance,
            solver,
            frames,
            storyboard,
            store,
        )
        drifts = film_drift(latent)
        return io.NodeOutput(latent, draw(drifts), describe(drifts), report)


def _solver_input() -> io.Input:
    return io.Combo.Input(
        "solver",
        options=list(SOLVERS),
        default="unipc",
        tooltip="unipc: the authors' choice. dpmpp_2m: the same without its corrector. euler: "
        "simpler, wants more steps. lcm: for distilled LoRAs, with few steps and cfg 1. "
        "unipc_as_shipped: repeats a bug of the original long-film code, only for comparing with "
        "it.",
    )


def _film_inputs() -> list[io.Input]:
    return [
        Frames.Input(
            "frames",
            optional=True,
            tooltip="Start, end and key images, and clips to extend or to lead into, from "
            "SkyReels-V2 Frames.",
        ),
        Storyboard.Input(
            "storyboard",
            optional=True,
            tooltip="Shots with their own prompts and lengths. Replaces positive and the "
            "schedule's frames.",
        ),
        io.String.Input(
            "cfg_curve",
            default="",
            optional=True,
            tooltip="Instead of cfg: a curve of 'noise level: cfg' from 1 (noise) to 0, for "
            "example 1: 6, 0.5: 4, 0: 1. Straight lines join the points. Where it is 1 a step "
            "takes half the time. A semicolon starts the curve of the next window. The last one "
            "holds for the rest.",
        ),
        Store.Input(
            "store",
            optional=True,
            tooltip="Saves the film on disk while it is made, and goes on after a crash. From "
            "SkyReels-V2 Store.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Latent.Output(
            tooltip="The whole film, for SkyReels-V2 Decode. VAE Decode works as well."
        ),
        io.Image.Output(
            display_name="drift",
            tooltip="How far each window's colours have moved from the first one's, drawn.",
        ),
        io.String.Output(display_name="drift_numbers", tooltip="The same in numbers."),
        io.String.Output(
            display_name="report",
            tooltip="How many model calls the film took, and the share that SkyReels-V2 "
            "TeaCache forecast.",
        ),
    ]
