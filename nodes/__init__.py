"""What ComfyUI sees of this pack: the ordered list of its nodes."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .captioner import SkyReelsV2Captioner, SkyReelsV2CaptionFilm
from .color_anchor import SkyReelsV2ColorAnchor
from .decode import SkyReelsV2Decode
from .encode import SkyReelsV2Encode
from .film_to_video import SkyReelsV2FilmToVideo
from .frames import SkyReelsV2Frames
from .host.files import register_more_files, register_toy_weights
from .host.routes import serve
from .image_to_video import SkyReelsV2ImageToVideo
from .live_plan import answer_plan, answer_storyboard
from .loaders import (
    SkyReelsV2ImageEncoderLoader,
    SkyReelsV2ModelLoader,
    SkyReelsV2TextEncoderLoader,
    SkyReelsV2VAELoader,
)
from .lora import SkyReelsV2LoraLoader
from .multi_gpu import SkyReelsV2MultiGPU
from .prompt import SkyReelsV2PromptEncode
from .sampler import SkyReelsV2Sampler
from .schedule import SkyReelsV2Schedule
from .store import SkyReelsV2Store
from .storyboard import SkyReelsV2Storyboard, SkyReelsV2StoryboardText
from .tea_cache import SkyReelsV2TeaCache
from .words import (
    SkyReelsV2LanguageEndpoint,
    SkyReelsV2LanguageModelLoader,
    SkyReelsV2PromptEnhancer,
)

NODES: list[type[io.ComfyNode]] = [
    SkyReelsV2ModelLoader,
    SkyReelsV2TextEncoderLoader,
    SkyReelsV2VAELoader,
    SkyReelsV2PromptEncode,
    SkyReelsV2Schedule,
    SkyReelsV2Sampler,
    SkyReelsV2Decode,
    SkyReelsV2ImageEncoderLoader,
    SkyReelsV2ImageToVideo,
    SkyReelsV2Frames,
    SkyReelsV2Storyboard,
    SkyReelsV2StoryboardText,
    SkyReelsV2ColorAnchor,
    SkyReelsV2Encode,
    SkyReelsV2LoraLoader,
    SkyReelsV2TeaCache,
    SkyReelsV2Store,
    SkyReelsV2Captioner,
    SkyReelsV2CaptionFilm,
    SkyReelsV2LanguageModelLoader,
    SkyReelsV2LanguageEndpoint,
    SkyReelsV2PromptEnhancer,
    SkyReelsV2FilmToVideo,
    SkyReelsV2MultiGPU,
]


class SkyReelsV2Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_toy_weights()
        register_more_files()
        serve("plan", answer_plan)
        serve("storyboard", answer_storyboard)
        return NODES
