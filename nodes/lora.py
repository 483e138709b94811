"""LoRA files of every trainer onto a MODEL."""

from __future__ import annotations

import logging

from comfy_api.latest import io

from .host import files
from .host.checked import checked
from .host.sockets import lora as host_lora
from .inputs import CATEGORY

LOG = logging.getLogger("skyreels_v2")


class SkyReelsV2LoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2LoraLoader",
            display_name="SkyReels-V2 LoRA Loader",
            category=CATEGORY,
            search_aliases=["load lora", "lora"],
            description=(
                "Puts a LoRA on a SkyReels-V2 or Wan 2.1 model, whatever names its trainer used, "
                "and reports how much of it matched. ComfyUI's own LoRA nodes silently skip names "
                "that they do not know."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A model from our loader or ComfyUI's. Chain this "
                    "node for several LoRAs.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=files.list_files("loras"),
                    tooltip="File in models/loras: LoRA, DoRA, LoKr, LoHa, GLoRA, OFT or "
                    "differences. Reads the names of kohya, musubi, diffusion-pipe, DiffSynth, "
                    "PEFT, diffusers and LyCORIS, and distilled LoRAs (CausVid, lightx2v).",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-20.0,
                    max=20.0,
                    step=0.01,
                    tooltip="How strongly it acts: 0 not at all, 1 as trained, below 0 the other "
                    "way. Changing it does not load the model again.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the LoRA on it."),
                io.String.Output(
                    display_name="report",
                    tooltip="T2V or I2V, ranks, how many keys matched, and which did not.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        return files.check_listed("lora_name", "loras", lora_name)

    @classmethod
    @checked
    def execute(cls, model: io.Model.Type, lora_name: str, strength: float) -> io.NodeOutput:
        with files.name_errors("lora_name", lora_name):
            path = files.find_file("loras", lora_name)
            patched, report = host_lora.apply_lora(model, path, strength)
        LOG.info("%s: %s", lora_name, report)
        return io.NodeOutput(patched, report)
