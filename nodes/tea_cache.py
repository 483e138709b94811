"""Faster films: model calls that are forecast instead of computed."""

from __future__ import annotations

from comfy_api.latest import io

from ..skyreels_model.cache.settings import BOUNDS, CacheSettings
from .host import files
from .host.checked import checked
from .host.film.cache import NONE, add_cache, add_calibration, add_published, read_calibration

# The published modes, and whether each has what its authors call ret_steps.
PUBLISHED = {"published": True, "published_without_ret_steps": False}
CALIBRATE = "calibrate"
MODES = ("automatic", *PUBLISHED, CALIBRATE)


class SkyReelsV2TeaCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2TeaCache",
            display_name="SkyReels-V2 TeaCache",
            category="SkyReels-V2/sampling",
            search_aliases=["cache", "teacache", "easycache", "speed", "faster", "skip steps"],
            description=(
                "Makes films faster: some model calls are forecast from the last ones instead of "
                "computed. The default mode works with any model, and with frames at different "
                "noise levels (ar_step)."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model for SkyReels-V2 Sampler, after its LoRAs and patches.",
                ),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[0],
                    tooltip="automatic: continues each frame's velocity along a line, and measures "
                    "how far that misses. Works in SkyReels-V2 Sampler only, KSampler computes "
                    "everything. published: TeaCache with its authors' numbers for 1.3B and 14B. "
                    "Needs a model from our loader, works in KSampler too, and wants ar_step 0. "
                    "published_without_ret_steps: its older numbers. calibrate: makes a film "
                    "without forecasts, and writes down how this model behaves, for calibration.",
                ),
                io.Float.Input(
                    "threshold",
                    default=CacheSettings.threshold,
                    min=BOUNDS["threshold"][0],
                    max=BOUNDS["threshold"][1],
                    step=0.01,
                    tooltip="How far a forecast may be off, as a share. Higher is faster and less "
                    "exact. 0 is off: the same film as without this node. At 0.15 about two fifths "
                    "of the model calls remain with 30 steps, a third with 50. Authors' values for "
                    "published: 0.05 to 0.1 for 1.3B, 0.1 to 0.2 for 14B, 0.2 to 0.3 for I2V.",
                ),
                *_expert_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="For SkyReels-V2 Sampler.")],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: io.Model.Type,
        mode: str,
        threshold: float,
        start: float,
        end: float,
        calibration: str = NONE,
    ) -> io.NodeOutput:
        if mode != MODES[0] and calibration != NONE:
            raise ValueError(
                f"calibration is {calibration!r}, and mode is {mode}, which does not use it; set "
                f"calibration to {NONE}, or mode to {MODES[0]}"
            )
        if mode == CALIBRATE:
            return io.NodeOutput(add_calibration(model))
        settings = CacheSettings(threshold, start, end, read_calibration(calibration))
        if mode in PUBLISHED:
            return io.NodeOutput(add_published(model, settings, PUBLISHED[mode]))
        return io.NodeOutput(add_cache(model, settings))


def _expert_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "start",
            default=CacheSettings.start,
            min=BOUNDS["start"][0],
            max=BOUNDS["start"][1],
            step=0.05,
            advanced=True,
            tooltip="Share of each window's model calls that is always computed at its "
            "beginning: 0.1 is the first tenth.",
        ),
        io.Float.Input(
            "end",
            default=CacheSettings.end,
            min=BOUNDS["end"][0],
            max=BOUNDS["end"][1],
            step=0.05,
            advanced=True,
            tooltip="Share of a frame's steps that is always computed at the end of each "
            "window: 0.1 is the last tenth. The window's last call always is.",
        ),
        io.Combo.Input(
            "calibration",
            options=[NONE, *files.list_files(files.CALIBRATIONS)],
            default=NONE,
            optional=True,
            advanced=True,
            tooltip="How your model behaves, from a film that was made with mode calibrate "
            "once. With it, mode automatic knows from the first step on where forecasts "
            "miss. none: it learns that in each window.",
        ),
    ]
