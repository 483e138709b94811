"""Language models for a film's prompts: loaded, or at an endpoint; and the prompt enhancer."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from comfy_api.latest import io

from ..skyreels_model.rules import refusal
from ..skyreels_model.words import Engine, UnansweredError
from ..skyreels_model.words.enhance import LANGUAGES, LONG, Enhancer, count_calls
from .host import files, notice
from .host.checked import checked
from .host.words.asking import Asker, as_engine, stop
from .host.words.endpoint import fingerprint, open_endpoint
from .host.words.language_model import load_engine
from .host.words.layers import FORMATS
from .inputs import CATEGORY, WORDS, WRITERS, Words, words_seed_input

LOG = logging.getLogger("skyreels_v2")


class SkyReelsV2LanguageModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2LanguageModelLoader",
            display_name="SkyReels-V2 Language Model Loader",
            category=CATEGORY,
            search_aliases=["llm", "qwen", "vlm", "skycaptioner", "load clip"],
            description=(
                "Loads Qwen2.5, Qwen2.5-VL, Qwen3 or SkyCaptioner-V1 to write prompts and "
                "describe films. Nothing is downloaded, and no code of a model is run."
            ),
            inputs=[
                io.Combo.Input(
                    "language_model_name",
                    options=files.list_files(files.LANGUAGE_MODELS),
                    tooltip="File in models/text_encoders or models/LLM. Keep a downloaded "
                    "folder in one piece and choose its first .safetensors file. A single file "
                    "works too, such as qwen_2.5_vl_7b_fp8_scaled.safetensors.",
                ),
                io.Combo.Input(
                    "weight_format",
                    options=list(FORMATS),
                    default=FORMATS[0],
                    optional=True,
                    advanced=True,
                    tooltip="How its weights lie in memory. fp8: half of bf16. 4 bit: a third, by "
                    "the package bitsandbytes. as stored: as in the file, which may be packed "
                    "already.",
                ),
            ],
            outputs=[
                Words.Output(
                    display_name="engine", tooltip="For SkyReels-V2 Prompt Enhancer and Captioner."
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="One line: family, size, number format, tensors matched.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, language_model_name: str | None = None) -> bool | str:
        return files.check_listed("language_model_name", files.LANGUAGE_MODELS, language_model_name)

    @classmethod
    @checked
    def execute(cls, language_model_name: str, weight_format: str = FORMATS[0]) -> io.NodeOutput:
        with files.name_errors("language_model_name", language_model_name):
            path = files.find_file(files.LANGUAGE_MODELS, language_model_name)
            engine, report = load_engine(path, weight_format=weight_format)
        LOG.info("%s: %s", language_model_name, report)
        return io.NodeOutput(engine, report)


class SkyReelsV2LanguageEndpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2LanguageEndpoint",
            display_name="SkyReels-V2 Language Endpoint",
            category=CATEGORY,
            search_aliases=["llm", "openai", "ollama", "vllm", "lm studio"],
            description=(
                "A language model on a server of yours (vLLM, Ollama, LM Studio and similar). "
                "Address and key are never in a workflow. Set them in ComfyUI's settings under "
                "SkyReels-V2, or as SKYREELS_V2_WORDS_URL and SKYREELS_V2_WORDS_KEY in the "
                "environment."
            ),
            inputs=[
                io.String.Input(
                    "model",
                    default="",
                    tooltip="Name of the model on the server. Empty: the one that is set beside "
                    "the address, else the first that the server lists.",
                ),
                io.Boolean.Input(
                    "sees_images",
                    default=True,
                    tooltip="Whether the model reads images. They are sent to the server as "
                    "JPEGs, within the request.",
                ),
                io.Boolean.Input(
                    "clips_as_video",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Send the frames of a clip as one video, as vLLM reads them (for "
                    "SkyCaptioner-V1). Off: as images, which every server reads.",
                ),
            ],
            outputs=[
                Words.Output(
                    display_name="engine", tooltip="For SkyReels-V2 Prompt Enhancer and Captioner."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs: Any) -> str:
        return fingerprint()

    @classmethod
    @checked
    def execute(cls, model: str, sees_images: bool, clips_as_video: bool = False) -> io.NodeOutput:
        return io.NodeOutput(open_endpoint(model, sees_images, clips_as_video))


class SkyReelsV2PromptEnhancer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2PromptEnhancer",
            display_name="SkyReels-V2 Prompt Enhancer",
            category=WORDS,
            search_aliases=["prompt upsampling", "llm", "expand prompt", "magic prompt"],
            description=(
                "Writes a short prompt out as the captions that the model was trained on: shot, "
                "subjects, action over time, place, light, camera. Storyboards are written out "
                "shot by shot, each knowing the one before."
            ),
            inputs=[*_enhancer_inputs(), *_enhancer_options()],
            outputs=[
                io.String.Output(
                    display_name="prompt",
                    tooltip="The long prompt, or the storyboard with long prompts.",
                ),
                io.String.Output(
                    display_name="raw",
                    tooltip="All answers as the model wrote them, also where it failed after some.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        engine: Engine | io.Clip.Type,
        prompt: str,
        seed: int,
        language: str,
        start_image: io.Image.Type | None = None,
        previous: str = "",
        long_words: int = LONG,
        temperature: float = 0.7,
    ) -> io.NodeOutput:
        writer = as_engine(engine)
        enhancer = Enhancer(language=language, long_words=long_words, previous=previous)
        sampling = dataclasses.replace(enhancer.sampling, seed=seed, temperature=temperature)
        picture = None if start_image is None else start_image[:1, ..., :3].expand(-1, -1, -1, 3)
        if picture is not None and not picture.isfinite().all():
            rule = "finite numbers: the node that made them failed"
            raise refusal("start_image", "not finite", rule)
        enhancer = dataclasses.replace(enhancer, sampling=sampling, picture=picture)
        asker = Asker(writer, count_calls(prompt), sampling.max_tokens)
        try:
            written = enhancer.enhance(prompt, asker.ask)
        except UnansweredError as error:
            if not asker.raw.strip():
                raise ValueError(str(error)) from error  # the page shows an error's type
            return io.NodeOutput(stop(error), asker.raw)
        notice.show(written)
        return io.NodeOutput(written, asker.raw)


def _enhancer_inputs() -> list[io.Input]:
    return [
        io.MultiType.Input(
            "engine",
            types=WRITERS,
            tooltip="What writes: SkyReels-V2 Language Model Loader, SkyReels-V2 Language "
            "Endpoint, or a CLIP that writes text (Qwen3-VL, Qwen3.5, Gemma). The film's UMT5 "
            "cannot.",
        ),
        io.String.Input(
            "prompt",
            multiline=True,
            default="",
            tooltip="What the film shows, in a few words. Or a storyboard, as for SkyReels-V2 "
            "Storyboard (Text): '0s: a street at dawn / 6s: rain sets in'. Times and cuts stay.",
        ),
        words_seed_input(),
        io.Combo.Input(
            "language",
            options=list(LANGUAGES),
            default="english",
            tooltip="english: what the model was trained on, whatever language you write in. as "
            "written: the language of your prompt.",
        ),
    ]


def _enhancer_options() -> list[io.Input]:
    return [
        io.Image.Input(
            "start_image",
            optional=True,
            tooltip="The film's first frame. The prompt then tells what happens from it on. "
            "Needs an engine that sees images.",
        ),
        io.String.Input(
            "previous",
            multiline=True,
            default="",
            optional=True,
            tooltip="The prompt of the shot before, so that its subjects look the same and are "
            "named the same. A storyboard's later shots know theirs automatically.",
        ),
        io.Int.Input(
            "long_words",
            default=LONG,
            min=0,
            max=10000,
            optional=True,
            advanced=True,
            tooltip="Prompts of this many words or more stay as they are. 0: none do.",
        ),
        io.Float.Input(
            "temperature",
            default=0.7,
            min=0.0,
            max=2.0,
            step=0.05,
            optional=True,
            advanced=True,
            tooltip="How freely words are chosen. 0: always the likeliest ones, whatever the seed.",
        ),
    ]
