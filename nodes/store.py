"""A film on disk while it is made: nothing is lost by a crash, a cancel or a power cut."""

from __future__ import annotations

from comfy_api.latest import io

from .host.checked import checked
from .host.film.store import BOUNDS, StoreSettings, list_films
from .inputs import Store


class SkyReelsV2Store(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Store",
            display_name="SkyReels-V2 Store",
            category="SkyReels-V2/sampling",
            search_aliases=["save film", "resume", "checkpoint", "continue", "crash", "retake"],
            description=(
                "Saves a film on disk while it is made. Queue the same graph again after a crash "
                "or a cancel, and it goes on where it was. A changed film keeps the windows that "
                "still hold."
            ),
            inputs=[
                io.String.Input(
                    "name",
                    default="my film",
                    tooltip="The film's name. Its folder lies in ComfyUI's output folder, in "
                    "skyreels_v2_films.",
                ),
                io.Float.Input(
                    "save_every",
                    default=60.0,
                    min=BOUNDS["save_every"][0],
                    max=BOUNDS["save_every"][1],
                    step=1.0,
                    advanced=True,
                    tooltip="Seconds between two savings of the window at work. A crash loses "
                    "about that much. More on a slow disk: saving takes at most 1 % of the time. "
                    "0 saves after every model call. Finished windows are always saved at once.",
                ),
                io.Boolean.Input(
                    "start_afresh",
                    default=False,
                    tooltip="Make all windows again, also those that are on disk. Nothing is "
                    "deleted. A window that comes out the same takes the old one's place.",
                ),
                *_further_inputs(),
            ],
            outputs=[
                Store.Output(display_name="store", tooltip="For SkyReels-V2 Sampler."),
                io.String.Output(
                    display_name="films",
                    tooltip="All films on disk and their sizes, and the takes of this one.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        name: str,
        save_every: float,
        start_afresh: bool,
        watch: bool = False,
        takes: str = "",
    ) -> io.NodeOutput:
        settings = StoreSettings(name, save_every, start_afresh, watch, takes)
        return io.NodeOutput(settings, list_films(settings))


def _further_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "watch",
            default=False,
            optional=True,
            tooltip="Writes each finished window as a video at once, so you can watch the "
            "film while it is made. SkyReels-V2 Film to Video at its defaults joins them "
            "without decoding. Needs a VAE at the sampler.",
        ),
        io.String.Input(
            "takes",
            default="",
            multiline=True,
            optional=True,
            tooltip="Makes parts of the film again, a line each. 'shot 3: seed 7' makes "
            "shot 3 and what hangs on it. 'shot 3 only: seed 7' keeps what follows. "
            "'shot 3: take 1' brings an old one back. 'window 8' works like 'shot 3'. The "
            "sampler's report lists the takes.",
        ),
    ]
