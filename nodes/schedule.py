"""The numbers of a film, checked and drawn before any work is done."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..skyreels_model.budget import describe_kept, describe_memory, describe_ram
from ..skyreels_model.cache.kept_frames import storage_of
from ..skyreels_model.plan.bounds import BOUNDS
from ..skyreels_model.plan.choose import choose_plan
from ..skyreels_model.plan.drawing import draw_plan
from ..skyreels_model.plan.film_plan import FINISHED_FRAMES, HISTORIES, IDLE_FRAMES, FilmPlan
from ..skyreels_model.plan.presets import CUSTOM, PRESETS
from ..skyreels_model.plan.resting import most_finished
from ..skyreels_model.plan.summary import describe_plan
from .host import notice
from .host.checked import checked
from .host.sockets.memory import card, machine_ram
from .inputs import Schedule


class SkyReelsV2Schedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Schedule",
            display_name="SkyReels-V2 Schedule",
            category="SkyReels-V2/sampling",
            search_aliases=["film length", "video frames", "steps", "shift", "diffusion forcing"],
            description=(
                "Plans a film: its size, its length, the windows it is made in, and how noisy "
                "each frame is at each step. Checks the numbers before any model is loaded, draws "
                "the plan, and says how much GPU memory it needs."
            ),
            inputs=[
                *_size_inputs(),
                *_window_inputs(),
                *_step_inputs(),
                *_time_inputs(),
                *_sigma_inputs(),
                *_preset_inputs(),
            ],
            outputs=[
                Schedule.Output(display_name="schedule", tooltip="For the sampler."),
                io.Image.Output(
                    display_name="picture",
                    tooltip="The plan drawn: noise levels of the first windows. One line per "
                    "model call, one column per latent frame. Bright is noise, green is given, "
                    "outlined is being denoised. Each window has a frame around it.",
                ),
                io.String.Output(
                    display_name="summary",
                    tooltip="The plan in numbers, and the GPU memory it needs.",
                ),
                io.Int.Output(display_name="frames", tooltip="Number of frames in the film."),
                io.Float.Output(display_name="fps", tooltip="For Create Video."),
                io.Int.Output(
                    display_name="width",
                    tooltip="Pixels of the film, for nodes that ask for its size.",
                ),
                io.Int.Output(display_name="height", tooltip="Pixels of the film, as width."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, frames: int, **numbers: Any) -> io.NodeOutput:
        choice = choose_plan(frames, **numbers)
        for warning in choice.warnings:
            notice.warn(warning)
        plan, size = choice.plan, (choice.plan.width, choice.plan.height)
        summary = "\n".join([*choice.said, describe_plan(plan), describe_need(plan)])
        return io.NodeOutput(
            plan, draw_plan(plan), summary, plan.num_frames, float(plan.fps), *size
        )


def describe_need(plan: FilmPlan) -> str:
    """Lines for people: the memory that a film takes, and whether this machine has it."""
    shown, size = plan.shown_latents(plan.window_at(0)), (plan.width, plan.height)
    ram = describe_ram(plan.num_frames, plan.latent_frames, *size, machine_ram())
    lines = [ram, describe_memory(shown, *size, card())]
    if plan.keeps_frames:
        storage = storage_of(plan.finished_frames)
        lines.append(describe_kept(most_finished(plan), *size, storage.itemsize, storage.in_ram))
    return "\n".join(lines)


def _span(name: str) -> dict[str, Any]:
    """The bounds of a number's widget: the plan's own."""
    least, most = BOUNDS[name]
    return {"min": least, "max": most}


def _size_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "width",
            default=960,
            **_span("width"),
            step=16,
            tooltip="Width in pixels, a multiple of 16. Authors' value: 960 (540P) or 1280 (720P).",
        ),
        io.Int.Input(
            "height",
            default=544,
            **_span("height"),
            step=16,
            tooltip="Height in pixels, a multiple of 16. Authors' value: 544 (540P) or 720 (720P).",
        ),
    ]


def _window_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "frames",
            default=97,
            **_span("frames"),
            step=1,
            tooltip="Length of the film in frames, any number. At 24 fps, 97 is 4 s, 257 is 10 s, "
            "737 is 30 s, 1457 is 60 s. Time grows in proportion.",
        ),
        io.Int.Input(
            "window",
            default=97,
            **_span("window"),
            step=4,
            tooltip="How many frames the model sees at once (4k + 1). Trained: 97 at 540P, 121 at "
            "720P. A smaller window needs less memory.",
        ),
        io.Int.Input(
            "overlap",
            default=17,
            **_span("overlap"),
            step=4,
            advanced=True,
            tooltip="How many frames each window shares with the previous one (4k + 1). A longer "
            "overlap keeps motion more consistent but needs more windows. Authors' values: 17 or "
            "37.",
        ),
    ]


def _step_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "steps",
            default=30,
            **_span("steps"),
            tooltip="Steps from noise to picture. More take longer. Authors' value: 30, or 50 for "
            "best quality.",
        ),
        io.Float.Input(
            "shift",
            default=8.0,
            **_span("shift"),
            step=0.1,
            advanced=True,
            tooltip="How many of the steps are spent at high noise. Authors' value: 8 for text to "
            "video, 3 to 5 with a start image.",
        ),
        io.Int.Input(
            "ar_step",
            default=0,
            **_span("ar_step"),
            advanced=True,
            tooltip="0: all frames are denoised together (synchronous). Above 0: each block "
            "starts this many model calls after the previous one (asynchronous). That follows "
            "motion better and takes more model calls. Authors' value: 5.",
        ),
        io.Int.Input(
            "block_size",
            default=1,
            **_span("block_size"),
            advanced=True,
            tooltip="How many latent frames (4 frames each) share a noise level. A window's last "
            "block may be shorter. Authors' value: 5, with ar_step 5.",
        ),
        io.Int.Input(
            "prefix_noise",
            default=20,
            **_span("prefix_noise"),
            advanced=True,
            tooltip="Noise added to the overlap frames as the model sees them (thousandths; 0 is "
            "off). Keeps small flaws from building up. Authors' value: 20.",
        ),
    ]


def _time_inputs() -> list[io.Input]:
    return [
        io.Int.Input(
            "fps",
            default=24,
            **_span("fps"),
            tooltip="Frames per second. DF-1.3B was trained on 16 and 24, the other models on 24.",
        ),
        io.Float.Input(
            "seconds",
            default=0.0,
            **_span("seconds"),
            step=0.1,
            optional=True,
            tooltip="Length of the film in seconds, to the nearest frame. Used instead of frames. "
            "0: use frames.",
        ),
        io.Combo.Input(
            "history",
            options=list(HISTORIES),
            default="pixels",
            optional=True,
            advanced=True,
            tooltip="How each window continues the previous one. pixels: its last frames, encoded "
            "again (the authors' way). latents: its last latents as they are, without the VAE. "
            "picture+latents: one frame encoded again, then latents.",
        ),
    ]


def _sigma_inputs() -> list[io.Input]:
    return [
        io.Sigmas.Input(
            "sigmas",
            optional=True,
            advanced=True,
            tooltip="Noise levels to use instead of steps and shift, for example from Manual "
            "Sigmas or Basic Scheduler. They fall from 1, or a little below, to 0.",
        ),
        io.Boolean.Input(
            "sliding",
            default=False,
            optional=True,
            advanced=True,
            tooltip="On: no windows and no seams. A view as long as the window slides over one "
            "asynchronous sequence, without the VAE. Needs ar_step of at least steps / blocks in "
            "the window. A preset takes care of that.",
        ),
        io.Float.Input(
            "anchor",
            default=0.0,
            **_span("anchor"),
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How closely each window keeps the colours of the first one (of the film, or "
            "since a cut). 0 is off. 0.5 to 1 stop slow drift of brightness, contrast and hue, "
            "but also changes that you want. Works best with history pixels.",
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            **_span("denoise"),
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="Video to video: how much of the source to replace. 0.3 keeps most of it, 0.8 "
            "little. The step count stays the same.",
        ),
    ]


def _preset_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "preset",
            options=[CUSTOM, *PRESETS],
            default=CUSTOM,
            optional=True,
            tooltip="The authors' settings for a model: sets width, height, window, overlap, "
            "steps, shift, ar_step, block_size and prefix_noise, whatever their widgets show. A "
            "height above the width makes it upright. Length, fps and the rest stay yours. custom: "
            "use the widgets.",
        ),
        io.Float.Input(
            "fps_float",
            **_span("fps"),
            optional=True,
            force_input=True,
            tooltip="Frames per second from a FLOAT output, such as the fps of Get Video "
            "Components. Used instead of fps, rounded to a whole number.",
        ),
        io.Combo.Input(
            "idle_frames",
            options=list(IDLE_FRAMES),
            default=IDLE_FRAMES[0],
            optional=True,
            advanced=True,
            tooltip="Frames of an asynchronous film (ar_step above 0) that still wait for their "
            "first step. computed: the model sees them, as in training (the authors' way). "
            "left_out: it sees them when their turn comes. Faster, and another film of the same "
            "quality. The summary says how much is left.",
        ),
        *_finished_inputs(),
    ]


def _finished_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "finished_frames",
            options=list(FINISHED_FRAMES),
            default=FINISHED_FRAMES[0],
            optional=True,
            advanced=True,
            tooltip="Frames that are given, or done before others. computed: in every model call, "
            "the authors' way. kept: what the model knows of them is kept, and they are computed "
            "now and then. Faster, another film of the same quality, and takes GPU memory: see "
            "the summary. kept_fp8: half of that memory. kept_in_ram, kept_in_ram_fp8: in RAM, a "
            "little slower.",
        ),
        io.Int.Input(
            "refresh_every",
            default=FilmPlan.refresh_every,
            **_span("refresh_every"),
            optional=True,
            advanced=True,
            tooltip="With finished_frames kept: finished frames are computed again once in so "
            "many model calls. 1: in every call, which saves nothing.",
        ),
    ]
