"""Latents of a film to a video file, without ever holding its frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..skyreels_model.video.codecs import BIT_DEPTHS, CODECS, VideoSettings
from ..skyreels_model.video.codecs import BOUNDS as CODING
from .host.checked import checked
from .host.film.decoding import open_film, open_stored_film
from .host.film.store import StoreSettings, open_stored
from .host.film.video import BOUNDS, save_film, workflow_metadata
from .inputs import Store, tile_size_input


class SkyReelsV2FilmToVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SkyReelsV2FilmToVideo",
            display_name="SkyReels-V2 Film to Video",
            category="SkyReels-V2/latent",
            search_aliases=["save video", "export", "mp4", "prores", "vae decode", "streaming"],
            description=(
                "Decodes a film straight into a video file in ComfyUI's output folder. Only a few "
                "frames are in RAM at a time, so an hour needs no more than a second. Replaces "
                "SkyReels-V2 Decode, Create Video and Save Video."
            ),
            inputs=[
                io.Vae.Input("vae", tooltip="The Wan 2.1 VAE, ours or ComfyUI's."),
                io.String.Input(
                    "filename_prefix",
                    default="video/SkyReels-V2",
                    tooltip="Folder and name in ComfyUI's output folder. A number is added, so "
                    "that no file is replaced.",
                ),
                *_coding_inputs(),
                *_film_inputs(),
            ],
            outputs=[
                io.Video.Output(
                    tooltip="The file as a VIDEO. Save Video copies it without coding it again."
                ),
                io.String.Output(display_name="file", tooltip="Where the file lies."),
                io.String.Output(
                    display_name="report", tooltip="Frames, size, length and size of the file."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        vae: io.Vae.Type,
        filename_prefix: str,
        codec: str,
        quality: int,
        bit_depth: str,
        fps: float,
        samples: io.Latent.Type | None = None,
        audio: Mapping[str, Any] | None = None,
        tile_size: int = 0,
        store: StoreSettings | None = None,
    ) -> io.NodeOutput:
        settings = VideoSettings(codec, quality, bit_depth)
        if (samples is None) == (store is None):
            found = "both" if store else "neither of them"
            raise ValueError(f"samples and store: {found} is connected; connect one of them")
        if store is not None:
            film = open_stored_film(vae, open_stored(store), tile_size)
        else:
            film = open_film(vae, samples, tile_size)
        metadata = workflow_metadata(cls.hidden)
        saved = save_film(film, vae, settings, filename_prefix, fps, audio, metadata)
        return io.NodeOutput(saved.video, str(saved.path), saved.report, ui=saved.shown)


def _coding_inputs() -> list[io.Input]:
    return [
        io.Combo.Input(
            "codec",
            options=list(CODECS),
            default="h264",
            tooltip="h264 plays everywhere. hevc and av1 make smaller files. vp9 is for the web. "
            "prores is for editing programs. ffv1 and png lose nothing: png writes a folder of "
            "numbered images.",
        ),
        io.Int.Input(
            "quality",
            default=80,
            min=CODING["quality"][0],
            max=CODING["quality"][1],
            tooltip="0 to 100. 80 looks like the original, 50 makes small files. ffv1 and png "
            "always keep everything.",
        ),
        io.Combo.Input(
            "bit_depth",
            options=list(BIT_DEPTHS),
            default=BIT_DEPTHS[0],
            tooltip="10 keeps smooth gradients without bands. Some players do not show h264 with "
            "10. prores always has 10, png then has 16.",
        ),
        io.Float.Input(
            "fps",
            default=0.0,
            min=BOUNDS["fps"][0],
            max=BOUNDS["fps"][1],
            step=1.0,
            tooltip="Frames per second. 0: the film's own, from its schedule, or 24 where that is "
            "not known.",
        ),
    ]


def _film_inputs() -> list[io.Input]:
    return [
        io.Latent.Input(
            "samples",
            optional=True,
            tooltip="Latents from SkyReels-V2 Sampler, or of any SkyReels-V2 or Wan 2.1 model.",
        ),
        io.Audio.Input(
            "audio",
            optional=True,
            tooltip="Sound from the film's first frame on. It is cut to the film's length, "
            "or filled up with silence.",
        ),
        tile_size_input(),
        Store.Input(
            "store",
            optional=True,
            tooltip="Instead of samples: a film that lies on disk, as far as it is "
            "finished. From SkyReels-V2 Store.",
        ),
    ]
