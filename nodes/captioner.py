"""Films in words: what is seen in a shot, and a storyboard of a whole film."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..skyreels_model.words import UnansweredError
from ..skyreels_model.words.ask import IF_UNREADABLE
from .host import notice
from .host.checked import checked
from .host.words.asking import as_engine, stop
from .inputs import WORDS, WRITERS, words_seed_input

if TYPE_CHECKING:
    from ..skyreels_model.words.captioning import Settings


class SkyReelsV2Captioner(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2Captioner",
            display_name="SkyReels-V2 Captioner",
            category=WORDS,
            search_aliases=["SkyCaptioner", "describe video", "caption", "video to text"],
            description=(
                "Describes a shot in the manner of SkyReels-V2's training captions: as fields, and "
                "as prompts for text to video and image to video. Made for SkyCaptioner-V1. Other "
                "language models that see pictures work, too."
            ),
            inputs=[
                *_what_is_seen(),
                *_how_it_is_told("stop"),
                *_training_inputs(),
            ],
            outputs=[
                io.String.Output(
                    display_name="t2v_caption", tooltip="A prompt that tells all of the shot."
                ),
                io.String.Output(
                    display_name="i2v_caption",
                    tooltip="A prompt that tells what happens, for films from a start image.",
                ),
                io.String.Output(
                    display_name="description", tooltip="All fields, as JSON that was checked."
                ),
                io.String.Output(
                    display_name="subjects", tooltip="Who and what is seen, a line for each."
                ),
                io.String.Output(
                    display_name="shot", tooltip="The shot's size, and the camera's angle and side."
                ),
                io.String.Output(display_name="camera_motion", tooltip="How the camera moves."),
                io.String.Output(display_name="environment", tooltip="The place."),
                io.String.Output(display_name="lighting", tooltip="The light."),
                io.String.Output(
                    display_name="raw",
                    tooltip="The answer as the model wrote it, also where it cannot be read.",
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        engine: object,
        seed: int,
        images: io.Image.Type | None = None,
        video: io.Video.Type | None = None,
        fusion_engine: object = None,
        instructions: str = "",
        keep_proportions: bool = False,
        if_unreadable: str = "stop",
        drop_fields: bool = False,
    ) -> io.NodeOutput:
        # Here, for they take pydantic, which takes a part of ComfyUI's start.
        from ..skyreels_model.words.fusion import tell_shot, tell_subjects
        from .host.words.captions import caption_shot

        told_how = instructions, keep_proportions, if_unreadable, seed if drop_fields else None
        settings = _make_settings(engine, fusion_engine, seed, *told_how)
        found = caption_shot(images, video, settings)
        if isinstance(found, UnansweredError):
            return io.NodeOutput(*[stop(found)] * 8, found.raw)
        told = found.description
        notice.show(found.t2v)
        return io.NodeOutput(
            found.t2v,
            found.i2v,
            told.to_json(),
            "\n".join(tell_subjects(told)),
            tell_shot(told),
            told.camera_motion,
            told.environment,
            told.lighting,
            found.raw,
        )


class SkyReelsV2CaptionFilm(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2CaptionFilm",
            display_name="SkyReels-V2 Caption Film",
            category=WORDS,
            search_aliases=["SkyCaptioner", "storyboard", "scene cuts", "shot detection", "remake"],
            description=(
                "A film of any length becomes a storyboard: its cuts are found, each shot is "
                "described, and the text goes into SkyReels-V2 Storyboard (Text). Edit it on the "
                "way and remake the film."
            ),
            inputs=[
                *_what_is_seen(),
                *_where_shots_end(),
                *_how_it_is_told("use the text"),
                *_what_is_known(),
            ],
            outputs=[
                io.String.Output(
                    display_name="storyboard", tooltip="For SkyReels-V2 Storyboard (Text)."
                ),
                io.Float.Output(
                    display_name="seconds", tooltip="The film's length, for the same node."
                ),
                io.String.Output(
                    display_name="shots",
                    tooltip="All that is known of each shot, as JSON: its times, its fields, both "
                    "captions, and the raw answer. After an error, of the shots before it.",
                ),
                io.Int.Output(display_name="count", tooltip="How many shots and parts there are."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        engine: object,
        seed: int,
        fps: float,
        cuts: str,
        shortest_shot: float,
        longest_part: float,
        images: io.Image.Type | None = None,
        video: io.Video.Type | None = None,
        fusion_engine: object = None,
        instructions: str = "",
        keep_proportions: bool = False,
        if_unreadable: str = "use the text",
        known_shots: str = "",
    ) -> io.NodeOutput:
        from ..skyreels_model.words.film import write_shots, write_storyboard
        from .host.words.captions import Shots, caption_film

        told_how = instructions, keep_proportions, if_unreadable
        settings = _make_settings(engine, fusion_engine, seed, *told_how)
        shots = Shots(fps, cuts, shortest_shot, longest_part, known_shots)
        film = caption_film(images, video, settings, shots)
        if film.failure is None:
            storyboard = write_storyboard(film.clip, film.spans, [c.t2v for c in film.captions])
            notice.show(storyboard)
        else:
            storyboard = stop(film.failure)
        return io.NodeOutput(
            storyboard,
            film.clip.second(len(film.clip)),
            write_shots(film.clip, film.spans, film.captions, film.failure),
            len(film.spans),
        )


def _make_settings(engine: object, fusion_engine: object, seed: int, *told_how: Any) -> Settings:
    """How shots are described; told_how: the rest of `Settings`, in order."""
    from ..skyreels_model.words.captioning import Settings

    fusing = None if fusion_engine is None else as_engine(fusion_engine, "fusion_engine")
    return Settings(as_engine(engine), fusing, seed, *told_how)


def _what_is_seen() -> list[io.Input]:
    return [
        io.MultiType.Input(
            "engine",
            types=WRITERS,
            tooltip="A language model that sees pictures, best SkyCaptioner-V1: from SkyReels-V2 "
            "Language Model Loader, or a CLIP of ComfyUI that writes text.",
        ),
        io.Image.Input("images", optional=True, tooltip="The frames. Connect these or a video."),
        io.Video.Input(
            "video",
            optional=True,
            tooltip="A VIDEO of any length. Only the frames that are looked at are decoded.",
        ),
        words_seed_input(),
    ]


def _how_it_is_told(if_unreadable: str) -> list[io.Input]:
    return [
        io.MultiType.Input(
            "fusion_engine",
            types=WRITERS,
            tooltip="A language model that writes flowing captions from the fields, such as "
            "Qwen2.5. Without it the fields are joined as they are.",
            optional=True,
        ),
        io.String.Input(
            "instructions",
            default="",
            multiline=True,
            optional=True,
            advanced=True,
            tooltip="What the model is asked to do. Empty: the text of "
            "skyreels_model/words/prompts/describe_shot.txt.",
        ),
        io.Boolean.Input(
            "keep_proportions",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Off: frames are squeezed to 360 x 420 pixels, as SkyCaptioner-V1 was trained. "
            "On: they keep their proportions, which suits other models.",
        ),
        io.Combo.Input(
            "if_unreadable",
            options=list(IF_UNREADABLE),
            default=if_unreadable,
            optional=True,
            advanced=True,
            tooltip="When the answer has no fields in it after 3 tries. stop: an error that shows "
            "it. use the text: it becomes the caption.",
        ),
    ]


def _where_shots_end() -> list[io.Input]:
    return [
        io.Float.Input(
            "fps",
            default=24.0,
            min=0.1,
            max=1000.0,
            step=0.1,
            tooltip="Frames per second of the images. A VIDEO knows its own.",
        ),
        io.String.Input(
            "cuts",
            default="",
            tooltip="The seconds at which a new shot begins, separated by commas: 2.5, 4. "
            "Empty: they are found automatically.",
        ),
        io.Float.Input(
            "shortest_shot",
            default=1.0,
            min=0.1,
            max=3600.0,
            step=0.1,
            tooltip="In seconds: cuts nearer to the one before are passed over.",
        ),
        io.Float.Input(
            "longest_part",
            default=10.0,
            min=0.0,
            max=86400.0,
            step=0.5,
            tooltip="In seconds: longer shots are described in equal parts that continue "
            "each other. 0: each shot as a whole.",
        ),
    ]


def _what_is_known() -> list[io.Input]:
    return [
        io.String.Input(
            "known_shots",
            multiline=True,
            default="",
            optional=True,
            advanced=True,
            tooltip="The text of shots from an earlier run, as it was or edited. Shots that begin "
            "and end at the same seconds keep its words, only the others are described.",
        ),
    ]


def _training_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "drop_fields",
            default=False,
            optional=True,
            advanced=True,
            tooltip="Leave 1 in 10 looks, positions and lights out of the captions at "
            "random, by the seed. Training captions were made so.",
        ),
    ]
