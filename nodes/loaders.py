"""Checkpoint files to the host's MODEL, CLIP, VAE and CLIP_VISION."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from comfy_api.latest import io

from .host import files
from .host.checked import checked
from .host.sockets import attention as host_attention
from .host.sockets import clip as host_clip
from .host.sockets import clip_vision as host_clip_vision
from .host.sockets import model as host_model
from .host.sockets import vae as host_vae
from .inputs import CATEGORY

LOG = logging.getLogger("skyreels_v2")
ENCODER_REPORT = "Width, layers, number format, tensors matched."


def _load(
    input_name: str, category: str, name: str, load: Callable[[Path], tuple[object, str]]
) -> io.NodeOutput:
    """What `load` makes of a listed file, and its report; errors begin with the input."""
    with files.name_errors(input_name, name):
        loaded, report = load(files.find_file(category, name))
    LOG.info("%s: %s", name, report)
    return io.NodeOutput(loaded, report)


class SkyReelsV2ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2ModelLoader",
            display_name="SkyReels-V2 Model Loader",
            category=CATEGORY,
            search_aliases=["load diffusion model", "unet loader", "checkpoint", "wan"],
            description=(
                "Loads a SkyReels-V2 (or any Wan 2.1) diffusion model and reports what it found. "
                "Keeps the fps embedding of DF-1.3B, which ComfyUI's own loader drops."
            ),
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=files.list_files("diffusion_models"),
                    tooltip="File in models/diffusion_models, .gguf as well. If the model is "
                    "split into several files, choose the first one. The others must lie beside "
                    "it. Films longer than a window need a DF model.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(host_model.WEIGHT_DTYPES),
                    default="default",
                    tooltip="Number format of the weights in memory. default: ComfyUI's choice "
                    "for this machine. bf16 and fp16 take 2 bytes a weight (14B: 28 GB). fp8 "
                    "takes 1 and costs some quality. fp32 takes 4. Quantised files stay quantised "
                    "and are computed in this format.",
                ),
                io.Combo.Input(
                    "attention",
                    options=host_attention.list_names(),
                    default="auto",
                    tooltip="auto: what ComfyUI was started with, for example "
                    "--use-sage-attention. pytorch: PyTorch's own, exact on every machine. "
                    "pytorch_order: the same, with the kernel that PyTorch would choose, which "
                    "auto takes on cards of compute capability 9.0 and 10.0. sage, sage3, flash, "
                    "xformers: faster on some cards, need a package. sub_quad, split: slow, for "
                    "little memory.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(host_model.VARIANTS),
                    default="auto",
                    tooltip="What the model was trained for. auto reads it from the file. Where "
                    "variants look the same inside, it goes by the name of the file or folder. "
                    "causal: blocks of frames see only earlier ones, as in Self-Forcing. Only "
                    "causal changes the film, the others change warnings.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="Works with ComfyUI's LoRA, sampling and patch nodes."),
                io.String.Output(
                    display_name="report",
                    tooltip="One line: type, size, resolution, number formats, quantisation, "
                    "and how many tensors matched.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, model_name: str | None = None, attention: str | None = None
    ) -> bool | str:
        listed = files.check_listed("model_name", "diffusion_models", model_name)
        return host_attention.check_name(attention) if listed is True else listed

    @classmethod
    @checked
    def execute(
        cls, model_name: str, weight_dtype: str, attention: str, variant: str
    ) -> io.NodeOutput:
        return _load(
            "model_name",
            "diffusion_models",
            model_name,
            lambda path: host_model.load_model(path, weight_dtype, attention, variant),
        )


class SkyReelsV2TextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2TextEncoderLoader",
            display_name="SkyReels-V2 Text Encoder Loader",
            category=CATEGORY,
            search_aliases=["load clip", "umt5", "t5"],
            description=(
                "Loads the UMT5 text encoder from its original file, from one repackaged for "
                "ComfyUI (scaled fp8 as well), or from a -Diffusers folder."
            ),
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=files.list_files("text_encoders"),
                    tooltip="File in models/text_encoders: umt5_xxl_fp16.safetensors, "
                    "umt5_xxl_fp8_e4m3fn_scaled.safetensors, or the original "
                    "models_t5_umt5-xxl-enc-bf16.pth with its tokenizer beside it, the folder "
                    "google/umt5-xxl.",
                ),
            ],
            outputs=[
                io.Clip.Output(tooltip="Works with SkyReels-V2 Prompt and CLIP Text Encode."),
                io.String.Output(display_name="report", tooltip=ENCODER_REPORT),
            ],
        )

    @classmethod
    def validate_inputs(cls, text_encoder_name: str | None = None) -> bool | str:
        return files.check_listed("text_encoder_name", "text_encoders", text_encoder_name)

    @classmethod
    @checked
    def execute(cls, text_encoder_name: str) -> io.NodeOutput:
        return _load("text_encoder_name", "text_encoders", text_encoder_name, host_clip.load_clip)


class SkyReelsV2VAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2VAELoader",
            display_name="SkyReels-V2 VAE Loader",
            category=CATEGORY,
            search_aliases=["load vae", "wan vae"],
            description="Loads the Wan 2.1 video VAE. Frames stream through it, so its memory "
            "does not grow with the film.",
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=files.list_files("vae"),
                    tooltip="File in models/vae: wan_2.1_vae.safetensors, the original "
                    "Wan2.1_VAE.pth, or the file in the folder vae of a -Diffusers repository.",
                ),
            ],
            outputs=[
                io.Vae.Output(tooltip="Works with VAE Encode and VAE Decode as well."),
                io.String.Output(display_name="report", tooltip="Number format, tensors matched."),
            ],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str | None = None) -> bool | str:
        return files.check_listed("vae_name", "vae", vae_name)

    @classmethod
    @checked
    def execute(cls, vae_name: str) -> io.NodeOutput:
        return _load("vae_name", "vae", vae_name, host_vae.load_vae)


class SkyReelsV2ImageEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2ImageEncoderLoader",
            display_name="SkyReels-V2 Image Encoder Loader",
            category=CATEGORY,
            search_aliases=["load clip vision", "clip vision"],
            description=(
                "Loads the CLIP image encoder of the I2V models, from its original file or from "
                "the one repackaged for ComfyUI."
            ),
            inputs=[
                io.Combo.Input(
                    "image_encoder_name",
                    options=files.list_files("clip_vision"),
                    tooltip="File in models/clip_vision: clip_vision_h.safetensors, or the "
                    "original models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth.",
                ),
            ],
            outputs=[
                io.ClipVision.Output(
                    display_name="clip_vision", tooltip="Works with CLIP Vision Encode as well."
                ),
                io.String.Output(display_name="report", tooltip=ENCODER_REPORT),
            ],
        )

    @classmethod
    def validate_inputs(cls, image_encoder_name: str | None = None) -> bool | str:
        return files.check_listed("image_encoder_name", "clip_vision", image_encoder_name)

    @classmethod
    @checked
    def execute(cls, image_encoder_name: str) -> io.NodeOutput:
        return _load(
            "image_encoder_name",
            "clip_vision",
            image_encoder_name,
            host_clip_vision.load_clip_vision,
        )
