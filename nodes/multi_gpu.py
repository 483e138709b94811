"""One film on several GPUs."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from ..skyreels_model.parallel.degrees import AUTOMATIC, MOST_GPUS
from .host.checked import checked
from .host.multi_gpu import shared
from .host.multi_gpu.devices import ALL

LOG = logging.getLogger("skyreels_v2")
# How many parts the prompts of a model call are divided into.
WHOLE, SHARDED = "whole", "sharded"
SPLIT_PROMPTS = {"automatic": AUTOMATIC, "on": 2, "off": 1}
PATIENCE, LEAST_PATIENCE, MOST_PATIENCE = 300.0, 10.0, 7200.0


def _inputs_for_experts() -> list[io.Input]:
    return [
        io.Int.Input(
            "ulysses",
            default=AUTOMATIC,
            min=AUTOMATIC,
            max=MOST_GPUS,
            advanced=True,
            tooltip="How many GPUs share a prompt's attention heads. It must divide the "
            "GPUs of a prompt and the heads: 12 in the 1.3B models, 40 in the 14B ones. "
            "What is left passes keys and values round in a ring. 0: as many as fit.",
        ),
        io.Float.Input(
            "patience",
            default=PATIENCE,
            min=LEAST_PATIENCE,
            max=MOST_PATIENCE,
            step=10.0,
            advanced=True,
            tooltip="Seconds that one model call may take. After that a GPU counts as "
            "hung: the run ends with an error, and the next one starts anew.",
        ),
        io.Combo.Input(
            "weights",
            options=[WHOLE, SHARDED],
            default=WHOLE,
            optional=True,
            advanced=True,
            tooltip="whole: each GPU holds all weights, or streams them from RAM. sharded: each "
            "GPU holds its part, and gathers block after block from the others. Choose it where a "
            "model does not fit one GPU and they have NVLink. For bf16, fp16 and fp32 files.",
        ),
    ]


class SkyReelsV2MultiGPU(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2MultiGPU",
            display_name="SkyReels-V2 Multi-GPU",
            category="SkyReels-V2/sampling",
            search_aliases=[
                "multi gpu",
                "parallel",
                "sequence parallel",
                "ulysses",
                "ring",
                "xdit",
            ],
            description=(
                "Uses several NVIDIA GPUs of this machine for one film: they share each model "
                "call, and the film stays the same. Linux only. Not yet measured on real cards."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model from SkyReels-V2 Model Loader, with its LoRAs.",
                ),
                io.String.Input(
                    "gpus",
                    default=ALL,
                    tooltip="all, or the numbers of the GPUs with commas between: 0,1,3. The one "
                    "that ComfyUI itself uses must be among them.",
                ),
                io.Combo.Input(
                    "split_prompts",
                    options=list(SPLIT_PROMPTS),
                    default="automatic",
                    tooltip="Whether one half of the GPUs computes the positive prompt and the "
                    "other half the negative one, which sends least between them. automatic: on "
                    "where the number of GPUs is even. Choose off where cfg is 1, for then there "
                    "is one prompt only.",
                ),
                *_inputs_for_experts(),
            ],
            outputs=[
                io.Model.Output(tooltip="For SkyReels-V2 Sampler, and for KSampler."),
                io.String.Output(
                    display_name="report", tooltip="One line: which GPUs, and what they share."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: io.Model.Type,
        gpus: str,
        split_prompts: str,
        ulysses: int,
        patience: float,
        weights: str = WHOLE,
    ) -> io.NodeOutput:
        parts, sharded = SPLIT_PROMPTS[split_prompts], weights == SHARDED
        made, report = shared.share_model(model, gpus, parts, ulysses, patience, sharded)
        LOG.info("SkyReels-V2 Multi-GPU: %s", report)
        return io.NodeOutput(made, report)
