"""The numbers of a film, checked and drawn before any work is done."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..skyreels_model.budget import describe as fit_text
from ..skyreels_model.grid import frames_of_seconds
from ..skyreels_model.plan.drawing import draw_plan
from ..skyreels_model.plan.film_plan import HISTORIES, MAX_PREFIX_NOISE, FilmPlan
from ..skyreels_model.plan.summary import describe
from ..skyreels_model.schedule.flow import custom_schedule
from .host.sockets.memory import card
from .inputs import Schedule


class SkyReelsV2Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Schedule",
            display_name="SkyReels-V2 Schedule",
            category="SkyReels-V2/sampling",
            description=(
                "Plans a film: its size and length, the windows it is made in, and the noise level "
                "of every latent frame in every step. Checks that all numbers go together, draws "
                "the plan, and says what GPU memory it needs."
            ),
            inputs=[
                *_size_inputs(),
                *_window_inputs(),
                *_step_inputs(),
                *_time_inputs(),
                *_sigma_inputs(),
            ],
            outputs=[
                Schedule.Output(display_name="schedule", tooltip="For the sampler."),
                io.Image.Output(
                    display_name="picture",
                    tooltip="Noise levels of the first windows: a row per model call, a column per "
                    "latent frame; bright is noise, green is given, rimmed is being denoised; each "
                    "window has a frame around it.",
                ),
                io.String.Output(
                    display_name="summary",
                    tooltip="The numbers that were chosen, and the GPU memory that they need.",
                ),
                io.Int.Output(display_name="frames", tooltip="Frames of the film."),
                io.Float.Output(display_name="fps", tooltip="For Create Video."),
            ],
        )

    @classmethod
    def execute(
        cls,
        frames: int,
        seconds: float = 0.0,
        sigmas: io.Sigmas.Type | None = None,
        **numbers: Any,
    ) -> io.NodeOutput:
        if seconds:
            frames = frames_of_seconds(seconds, numbers["fps"])
        if sigmas is not None:
            numbers["sigmas"] = tuple(custom_schedule(sigmas).sigmas.tolist())
        plan = FilmPlan(num_frames=frames, **numbers)
        shown = plan.shown_latents(plan.window_at(0))
        fit = fit_text(shown, plan.width, plan.height, card())
        summary = f"{describe(plan)}\n{fit}"
        return io.NodeOutput(plan, draw_plan(plan), summary, plan.num_frames, float(plan.fps))


def _size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "width",
            default=960,
            min=16,
            max=4096,
            step=16,
            tooltip="Pixels, a multiple of 16. Published: 960 (540P), 1280 (720P).",
        ),
        io.Int.Input(
            "height",
            default=544,
            min=16,
            max=4096,
            step=16,
            tooltip="Pixels, a multiple of 16. Published: 544 (540P), 720 (720P).",
        ),
    ]


def _window_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "frames",
            default=97,
            min=1,
            max=4_000_001,
            step=4,
            tooltip="Length of the film, any number of frames. 97 is 4 s at 24 fps, 257 is 10 s, "
            "737 is 30 s, 1457 is 60 s. Time grows in proportion.",
        ),
        io.Int.Input(
            "window",
            default=97,
            min=5,
            max=1001,
            step=4,
            tooltip="Frames the model sees at once: 4k + 1. Trained: 97 at 540P, 121 at 720P. "
            "Fewer need less memory.",
        ),
        io.Int.Input(
            "overlap",
            default=17,
            min=1,
            max=997,
            step=4,
            tooltip="Frames of the film so far that each further window continues: 4k + 1. "
            "Published: 17 or 37. More hold the motion better and cost more windows.",
        ),
    ]


def _step_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=30,
            min=1,
            max=1000,
            tooltip="Steps from noise to picture. Published: 30; 50 for best quality.",
        ),
        io.Float.Input(
            "shift",
            default=8.0,
            min=0.1,
            max=100.0,
            step=0.1,
            tooltip="How much of the steps is spent at high noise. Published: 8 for text to video, "
            "3 to 5 with a start image.",
        ),
        io.Int.Input(
            "ar_step",
            default=0,
            min=0,
            max=1000,
            tooltip="0: all frames are denoised together (synchronous). Above 0: each block starts "
            "this many rows after the one before it (asynchronous; published: 5), which follows "
            "motion better and takes more rows.",
        ),
        io.Int.Input(
            "block_size",
            default=1,
            min=1,
            max=250,
            tooltip="Latent frames (4 frames each) that share a noise level. A window's last block "
            "may be shorter. Published: 5 with ar_step 5.",
        ),
        io.Int.Input(
            "prefix_noise",
            default=20,
            min=0,
            max=MAX_PREFIX_NOISE,
            tooltip="Noise laid over the continued frames in the model's eyes, in thousandths. "
            "Hides small flaws, so that they do not grow from window to window. Published: 20; "
            "0 is off.",
        ),
    ]


def _time_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "fps",
            default=24,
            min=1,
            max=240,
            tooltip="Frames per second. DF-1.3B was trained to know 16 and 24; the others were "
            "trained on 24.",
        ),
        io.Float.Input(
            "seconds",
            default=0.0,
            min=0.0,
            max=86400.0,
            step=0.1,
            optional=True,
            tooltip="Length of the film in seconds instead of frames: the nearest number of "
            "frames. 0: use frames.",
        ),
        io.Combo.Input(
            "history",
            options=list(HISTORIES),
            default="pixels",
            optional=True,
            tooltip="How a window continues the one before. pixels: its last frames, encoded again "
            "(the published way). latents: its last latents, without the VAE. picture+latents: "
            "latents behind one frame encoded again.",
        ),
    ]


def _sigma_inputs() -> list[io.Input]:
    return [
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            tooltip="Noise levels instead of steps and shift, for instance of Manual Sigmas or "
            "Basic Scheduler: falling from 1, or a little below, to 0.",
        ),
        io.Boolean.Input(
            "sliding",
            default=False,
            optional=True,
            tooltip="On: no windows; a view of that many frames slides over one asynchronous "
            "sequence, without seams and without the VAE. Needs ar_step of at least steps / blocks "
            "in the window. Rotary positions begin anew at every view.",
        ),
        io.Float.Input(
            "anchor",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="How strongly each window's colours are held to the first one's (of the film, "
            "or since a cut) before the next continues it. 0 is off; 0.5 to 1 stop a slow drift of "
            "brightness, contrast and hue, but also changes that are meant. Small figures are held "
            "best with history pixels.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.05,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="Below 1, with a source film in SkyReels-V2 Frames: how far it is taken back "
            "to noise. 0.3 keeps most of it, 0.8 little. The steps stay as many.",
        ),
    ]
